"""Studies on several devices: a run on each at once gives what one after another gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

CODE = """
import json, sys
import jax, keras
from kzoo.studies import Study, runner, run

SMALL = dict(num_layers=1, hidden_dim=16, num_heads=2, intermediate_dim=32,
             max_sequence_length=36, dropout=0.1)
arms = {
    "gpt": {"preset": "gpt_nano", "overrides": {**SMALL, "objective": "continuation"}},
    "linear": {"preset": "bert_nano", "overrides": {**SMALL, "mechanism": "linear"}},
}
study = Study.from_dict({"arms": arms, "data": ["synthetic:copy"], "seeds": 4, "steps": 3,
                         "evaluations": 1, "batch_size": 4, "valid": 0.001})
out = sys.argv[1]
assert len(jax.devices()) == 8
keras.config.set_dtype_policy("mixed_bfloat16")  # by thread in Keras, and so handed on
many = run(study, out + "/many", progress=False)
one = run(study, out + "/one", progress=False, at_once=1)
print(json.dumps({"many": many, "one": one}))

train = runner.train
def fails(program, *args, path, **kwargs):
    outcome = train(program, *args, path=path, **kwargs)
    if "bert" in program.model.backbone.name or path.stem.endswith("linear - 1"):
        raise ZeroDivisionError("of this run")
    return outcome
runner.train = fails
try:
    run(study, out + "/failed", progress=False)
except ZeroDivisionError as error:
    print("failed:", error)
"""


def test_a_run_on_each_of_eight_devices(tmp_path):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, tmp_path],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags,
        },
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    *_, records, failed = process.stdout.splitlines()
    records = json.loads(records)
    assert len(records["many"]) == 8
    for many, one in zip(records["many"], records["one"], strict=True):
        for name in ("run", "train_loss", "held_out", "bits", "spectrum", "parameters", "facts"):
            assert many[name] == one[name], (many["run"], name)
        assert many["provenance"]["dtype"] == "mixed_bfloat16"
        assert one["provenance"]["device_ids"] == [0]
    places = [record["provenance"]["device_ids"] for record in records["many"]]
    assert sorted(places) == [[i] for i in range(8)]
    # One that fails stops the study and leaves what was finished.
    assert failed == "failed: of this run"
    left = (tmp_path / "failed" / "results.jsonl").read_text().splitlines()
    assert all(json.loads(line)["arm"] in ("gpt", "linear") for line in left)
    assert len(left) < 8
