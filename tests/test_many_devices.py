"""Studies on several devices: a run on each at once gives what one after another gives."""

import json
import os
import subprocess
import sys
import threading

import keras
import pytest

from kzoo.studies.threads import devices, in_threads, share_out

CODE = """
import json, sys
import jax, keras
from kzoo.studies import Study, run, runner

runner.attention_spectrum = lambda model, batch: []  # half of the time, for two more compilations

SMALL = dict(num_layers=1, hidden_dim=8, num_heads=2, intermediate_dim=16,
             max_sequence_length=36)
arms = {
    "gpt": {"preset": "gpt_nano", "overrides": {**SMALL, "objective": "prefix_lm"}},
    "linear": {"preset": "bert_nano", "overrides": {**SMALL, "mechanism": "linear"}},
}
study = Study.from_dict({"arms": arms, "data": ["synthetic:copy"], "seeds": 2, "steps": 3,
                         "evaluations": 1, "batch_size": 4, "valid": 0.001})
assert len(jax.devices()) == 4
keras.config.set_dtype_policy("mixed_bfloat16")  # by thread in Keras, and so handed on
many = run(study, sys.argv[1] + "/many", progress=False)
one = run(study, sys.argv[1] + "/one", progress=False, at_once=1)
print(json.dumps({"many": many, "one": one}))
"""


@pytest.mark.slow
def test_a_run_on_each_of_four_devices(tmp_path):
    flags = "--xla_force_host_platform_device_count=4"
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, tmp_path],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
        },
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    records = json.loads(process.stdout.splitlines()[-1])
    assert len(records["many"]) == 4
    for many, one in zip(records["many"], records["one"], strict=True):
        for name in ("run", "train_loss", "held_out", "bits", "parameters", "facts"):
            assert many[name] == one[name], (many["run"], name)
        assert many["provenance"]["dtype"] == "mixed_bfloat16"
        assert one["provenance"]["device_ids"] == [0]
    places = [record["provenance"]["device_ids"] for record in records["many"]]
    assert sorted(places) == [[i] for i in range(4)]


on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="shares out JAX's devices")


def test_seeds_are_shared_out_where_places_are_left():
    jobs = [("copy", "gpt", [0, 1, 2]), ("copy", "bert", [0, 1, 2])]
    assert share_out(jobs, 2) == jobs
    assert share_out(jobs, 4) == [
        ("copy", "gpt", [0, 2]),
        ("copy", "gpt", [1]),
        ("copy", "bert", [0, 2]),
        ("copy", "bert", [1]),
    ]
    assert len(share_out(jobs, 8)) == 6
    assert share_out([], 8) == []


@on_jax
def test_what_fails_stops_the_others_and_keeps_what_is_finished():
    import jax

    cpu, said, ready = jax.devices("cpu")[0], [], threading.Barrier(2)

    def work(job, say):
        say("record", job)
        if job < 2:
            ready.wait()
        if job == 1:
            raise ZeroDivisionError("of this run")
        while job == 0:
            say("step")

    def note(kind, *what):
        said.extend(what)

    with pytest.raises(ZeroDivisionError, match="of this run"):
        in_threads(work, [0, 1, 2, 3], note, [cpu, cpu])
    assert {0, 1} <= set(said)
    assert not [thread for thread in threading.enumerate() if thread.name == str(cpu)]


@on_jax
def test_an_interruption_ends_all_threads():
    import jax

    cpu = jax.devices("cpu")[0]

    def work(job, say):
        while True:
            say("step")

    def interrupted(kind):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_threads(work, [0, 1], interrupted, [cpu, cpu])
    assert not [thread for thread in threading.enumerate() if thread.name == str(cpu)]


@on_jax
def test_one_device_or_a_chosen_one_is_not_shared_out():
    import jax

    assert len(jax.local_devices()) > 1 or devices() == []
    with jax.default_device(jax.devices("cpu")[0]):
        assert devices() == []
