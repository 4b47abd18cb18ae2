"""oneDNN multiplies where it was tried, and what it gives is right.

The products stand in a process of their own: where XLA and oneDNN disagree, they end it.
"""

import json
import logging
import os
import subprocess
import sys
from importlib import metadata

import jax
import pytest

from kzoo import onednn

PRODUCTS = """
import json, random, sys
import kzoo
import jax, jax.numpy as jnp, numpy as np

draw, normal = random.Random(0), np.random.default_rng(0).normal
taken, worst = 0, 0.0
for _ in range(int(sys.argv[1])):
    kinds = [[next(letters) for _ in range(draw.choice(counts))]
             for letters in [iter("abcdefghijkl")]
             for counts in ((0, 1, 2, 3), (0, 1, 1, 2), (0, 1, 1, 2), (0, 1, 1))]
    batch, rows, columns, summed = kinds
    size = {letter: draw.choice((1, 2, 3, 8, 17, 32)) for kind in kinds for letter in kind}
    left, right, out = batch + rows + summed, batch + columns + summed, batch + rows + columns
    for letters in (left, right, out):
        if draw.random() < 0.7:
            draw.shuffle(letters)
    product = f"{''.join(left)},{''.join(right)}->{''.join(out)}"
    operands = [normal(size=[size[x] for x in of]).astype("float32") for of in (left, right)]
    if max(x.size for x in operands) > 2**16 or np.prod([size[x] for x in out]) > 2**16:
        continue
    dtype = draw.choice(("float32", "float32", "bfloat16"))
    operands = [jnp.asarray(x, dtype) for x in operands]
    slope = jax.grad(lambda a, b: jnp.einsum(product, a, b).astype("float32").sum(), (0, 1))
    both = jax.jit(lambda a, b: (jnp.einsum(product, a, b), slope(a, b)))
    program = both.lower(*operands).compile()
    taken += "__onednn_fusion" in program.as_text()
    wanted = np.einsum(product, *(np.asarray(x, "float64") for x in operands))
    got, _ = jax.block_until_ready(program(*operands))
    error = np.abs(np.asarray(got, "float64") - wanted).max() / (1 + np.abs(wanted).max())
    worst = max(worst, error if dtype == "float32" else error / 1000)
print(json.dumps({"taken": taken, "worst": worst}))
"""

applies = pytest.mark.skipif(
    onednn.FLAGS[0] not in os.environ["XLA_FLAGS"],
    reason="no AVX-512 on Linux, or another jaxlib than those of kzoo.onednn.TESTED",
)


@applies
def test_products_of_any_shape_and_order_are_right():
    done = subprocess.run(
        [sys.executable, "-c", PRODUCTS, "200"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["taken"] > 30
    assert result["worst"] < 1e-5


@pytest.fixture
def fresh(monkeypatch):
    """A process that has not looked for devices, where oneDNN was tried."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=somewhere")
    monkeypatch.setattr(onednn.platform, "system", lambda: "Linux")
    monkeypatch.setattr(onednn, "cpu_features", lambda: "flags : fma avx512f avx512bw")
    monkeypatch.setattr(onednn, "_runs_on_cpu", lambda: False)
    monkeypatch.setattr(metadata, "version", lambda name: onednn.TESTED[-1])
    return monkeypatch


def test_flags_stand_before_the_users_own(fresh):
    onednn.use_onednn()
    assert os.environ["XLA_FLAGS"].split() == [*onednn.FLAGS, "--xla_dump_to=somewhere"]
    onednn.use_onednn()  # the command calls it again
    assert os.environ["XLA_FLAGS"].split() == [*onednn.FLAGS, "--xla_dump_to=somewhere"]


@pytest.mark.parametrize("backend", ["tensorflow", "torch", None])
def test_other_backends_keep_their_flags(fresh, backend):
    if backend is None:
        fresh.delenv("KERAS_BACKEND")
    else:
        fresh.setenv("KERAS_BACKEND", backend)
    onednn.use_onednn()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=somewhere"


def test_who_names_onednn_decides(fresh):
    fresh.setenv("XLA_FLAGS", "--xla_cpu_use_onednn=false")
    onednn.use_onednn()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_use_onednn=false"


@pytest.mark.parametrize(
    "system, features", [("Darwin", "avx512bw"), ("Linux", "fma avx2"), ("Linux", "")]
)
def test_other_machines_are_left_alone(fresh, system, features):
    fresh.setattr(onednn.platform, "system", lambda: system)
    fresh.setattr(onednn, "cpu_features", lambda: features)
    onednn.use_onednn()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=somewhere"


def test_a_jaxlib_that_was_not_tried_is_told(fresh, caplog):
    fresh.setattr(metadata, "version", lambda name: "0.10.1")
    with caplog.at_level(logging.INFO, "kzoo"):
        onednn.use_onednn()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=somewhere"
    assert "not with 0.10.1" in caplog.text


def test_kzoo_after_jax_is_told(fresh, caplog):
    jax.devices()
    fresh.undo()
    if onednn.FLAGS[0] not in os.environ["XLA_FLAGS"]:
        pytest.skip("oneDNN is not used here")
    fresh.setenv("XLA_FLAGS", "")
    with caplog.at_level(logging.INFO, "kzoo"):
        onednn.use_onednn()
    assert os.environ["XLA_FLAGS"] == ""
    assert "Import kzoo first" in caplog.text
