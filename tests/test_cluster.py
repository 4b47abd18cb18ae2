"""Runs of a study on a Ray cluster of two nodes on this machine, one of which is lost."""

import pytest

from kzoo.cli import main
from kzoo.errors import InputError
from kzoo.studies import Study, cluster, run
from kzoo.studies import runner as runner_module
from kzoo.studies.folder import write_study

ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'kzoo[ray]'")

SIZES = {"num_layers": 1, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 32}
STUDY = {
    "name": "small",
    "arms": {"gpt": {"preset": "gpt_nano", "overrides": {**SIZES, "max_sequence_length": 36}}},
    "data": ["synthetic:copy"],
    "seeds": 2,
    "steps": 4,
    "batch_size": 4,
    "valid": 0.001,
}
TIMED = ("seconds", "tokens_per_second", "provenance", "checksum")


def without_clock(record):
    return {name: value for name, value in record.items() if name not in TIMED}


@pytest.fixture
def two_nodes():
    """A cluster of two nodes with one core each, so that two runs at once are one on each."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    ray.init(address=nodes.address, log_to_driver=False, logging_level="error")  # on the first
    second = nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    yield lambda: nodes.remove_node(second, allow_graceful=False)
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.slow
def test_a_lost_nodes_run_is_made_elsewhere_with_the_records_of_a_serial_study(two_nodes, tmp_path):
    study, said, lost = Study.from_dict(STUDY), [], []
    write_study(study, tmp_path)

    def say(kind, name, *what):
        said.append((kind, name, *what))
        if len({name for _, name, *_ in said}) == 2 and not lost:
            lost.append([kind for kind, *_ in said])
            two_nodes()

    jobs = [("synthetic:copy", "gpt", [0, 1])]
    cluster.on_cluster(runner_module.run_program, study, tmp_path, jobs, say)
    records = {name: what[0] for kind, name, *what in said if kind == "record"}
    # Neither had ended, so one was on each node when the second node was lost.
    assert len(lost) == 1 and "record" not in lost[0]
    serial = run(study, tmp_path / "serial", progress=False)
    for record in serial:
        made = without_clock(records.pop(record["run"]))
        assert made == {name: without_clock(record)[name] for name in made}
    assert not records


def test_what_runs_say_is_heard_once():
    heard = []
    hears = cluster._Once(lambda *message: heard.append(message))
    for message in (("begin", "a"), ("step", "a", 1, 2.0), ("begin", "a"), ("record", "a", {})):
        hears(*message)
    hears("step", "a", 2, 1.0)  # of a worker that was lost
    hears("record", "b", {})
    assert [message[:2] for message in heard] == [
        *(("begin", "a"), ("step", "a"), ("record", "a"), ("begin", "b"), ("record", "b"))
    ]


def test_a_run_takes_one_device():
    assert cluster._device({"CPU": 8.0}) == {"num_cpus": 1}
    assert cluster._device({"CPU": 8.0, "GPU": 2.0}) == {"num_gpus": 1}
    assert cluster._device({"CPU": 96.0, "TPU": 4.0}) == {"resources": {"TPU": 1}}


def test_errors_of_runs_are_those_of_a_serial_study():
    class Ray:
        exceptions = ray.exceptions

        def __init__(self, error):
            self.error = error

        def get(self, run):
            raise self.error

    job = ("pydoc", "gpt", [3])
    task_error = ray.exceptions.RayTaskError
    for cause, kind, message in (
        (InputError("the file cannot be read"), InputError, "cannot be read"),
        (OSError(28, "No space left on device"), OSError, "No space left"),
        (KeyError("no such arm"), RuntimeError, "no such arm"),
    ):
        with pytest.raises(kind, match=message):
            cluster._result(Ray(task_error("run", "traceback: no such arm", cause)), None, job)
    lost = ray.exceptions.WorkerCrashedError()
    with pytest.raises(ChildProcessError, match="lost 4 times.*Received: pydoc/gpt/3, Worker"):
        cluster._result(Ray(lost), None, job)


def test_no_cluster_and_no_ray(tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise ConnectionError("Failed to connect\nto GCS")

    for address in ("nowhere.invalid:6379", "127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(InputError, match=f"that answers .*Received: '{address}'"):
            run(Study.from_dict(STUDY), tmp_path / "out", progress=False, ray=address)
    assert not (tmp_path / "out").exists()  # nothing is written
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(InputError, match="answers .Failed to connect to GCS.*Received: ''"):
        cluster.on_cluster(None, None, tmp_path, [("a", "b", [0])], print)
    monkeypatch.setattr("kzoo.backend.importlib.util.find_spec", lambda name: name != "ray" or None)
    assert main(["compare", "--ray", "--out", str(tmp_path / "out")]) == 2
    assert "--ray needs a package: pip install 'kzoo[ray]'" in capsys.readouterr().err
