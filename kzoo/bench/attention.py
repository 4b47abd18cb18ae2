"""Time and memory of attention, forward and backward, by length, beside Keras and torch."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from kzoo import masks, mechanisms
from kzoo.bench import resident
from kzoo.bench.measure import (
    Ready,
    Skip,
    check_jax,
    counts,
    lengths,
    machine,
    matmul_peak,
    peer_torch,
    processors,
    race,
    ratio,
)
from kzoo.errors import unknown
from kzoo.mechanisms.gates import softplus_gates
from kzoo.ops.context import here
from kzoo.ops.delta import CHUNK
from kzoo.ops.dispatch import Spec
from kzoo.ops.linear import choose_chunk

DTYPES = ("float32", "bfloat16")
LIMIT_SECONDS = 20.0  # of one call
LIMIT_SCORES = 2**30  # bytes of one array of scores; a gradient needs several
REFERENCES = ("torch_sdpa", "softmax_dense", "linear_causal")


class Work(NamedTuple):
    """What a contestant computes.

    Attributes:
        mechanism: the name of a mechanism.
        mask: a mask spec.
        implementation: of kzoo's attention; None for other libraries.
    """

    mechanism: str
    mask: str
    implementation: str | None = "auto"


CONTESTANTS = {
    "linear_causal": Work("linear", "causal"),
    "linear_reversed": Work("linear", "reversed"),
    "linear_prefix": Work("linear", "prefix"),
    "linear_half_heads": Work("linear", "half_heads"),
    "linear_bidirectional": Work("linear", "bidirectional"),
    "retention_causal": Work("retention", "causal"),
    "gated_linear_causal": Work("gated_linear", "causal"),
    "gated_linear_bidirectional": Work("gated_linear", "bidirectional"),
    "delta_causal": Work("delta", "causal"),
    "gated_delta_causal": Work("gated_delta", "causal"),
    "gated_delta_half_heads": Work("gated_delta", "half_heads"),
    "softmax_causal": Work("softmax", "causal"),
    "softmax_dense": Work("softmax", "causal", "dense"),
    "keras_attention": Work("softmax", "causal", None),
    "torch_sdpa": Work("softmax", "causal", None),
    "fla_gated_linear": Work("gated_linear", "causal", None),
    "keras_hub_gated_delta": Work("gated_delta", "causal", None),
}
PEER_CHUNK, PEER_LENGTH = 64, 4096  # tokens of a chunk of keras-hub's; above, it compiles too long


class Size(NamedTuple):
    """[batch, time, heads, dim] of queries, keys and values."""

    batch: int
    time: int
    heads: int
    dim: int


def bench_attention(
    times=(1024, 4096, 16384),
    *,
    heads=8,
    dim=64,
    batch=1,
    repeats=5,
    dtype="float32",
    say=lambda text: None,
):
    """Time attention forward and backward, for random q, k, v and a random cotangent.

    Contestants: kzoo's linear attention under five masks (the source of prefix is the first half),
    with decays, its delta rule, and its softmax attention, with the kernel that "auto" chooses and
    dense; `keras.ops.dot_product_attention`, the core of `keras.layers.MultiHeadAttention`; torch's
    `scaled_dot_product_attention`; the reference form in chunks of flash-linear-attention, on
    torch; keras-hub's chunked gated delta rule. All return output and gradients, of gates too. They
    take turns, after one call each that is not counted.

    A contestant is skipped, with the reason, if one call is expected to take more than 20 s (by
    its order of growth, from the previous length), or a dense array of scores more than 1 GiB.

    Args:
        times: lengths, positive integers.
        heads, dim, batch: the other sizes.
        repeats: how often each contestant runs.
        dtype: `"float32"` or `"bfloat16"`.
        say: called with lines about the progress.

    Returns:
        A dict of JSON values: `settings`, `machine`, `matmul_peak` (operations per second, two
        per multiply-add, float32) and `rows`, one for each time and contestant: `time`,
        `contestant`, `kernel` (of kzoo's), `reason` (why it did not run, else None),
        `median_seconds`, `iqr_seconds`, `seconds`, `first_seconds`, `compile_seconds`,
        `memory_bytes` (JAX: arguments, outputs and temporaries of the compiled program; torch:
        growth of a fresh process), `memory_reason`, `multiply_adds`, `peak_fraction` and
        `ratio`, by the name of the contestant whose time it is divided by.

    Raises:
        InputError: for a size that is no positive integer, an unknown dtype, or another backend
            than JAX.

    Example:
        >>> result = bench_attention((1024, 4096), repeats=3)
        >>> [row["ratio"]["torch_sdpa"] for row in result["rows"] if row["time"] == 4096]
    """
    check_jax()
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    settings = {"heads": heads, "dim": dim, "batch": batch, "repeats": repeats}
    settings, times = counts(settings), lengths("times", times)
    heads, dim, batch, repeats = settings.values()
    about = machine()
    peak = matmul_peak(say)
    rows, medians = [], {}
    for length in times:
        size = Size(batch, length, heads, dim)
        tensors = _random_inputs(size, dtype)
        entries = {
            name: _entry(name, work, size, dtype, tensors, medians.get(name))
            for name, work in CONTESTANTS.items()
        }
        results = race(
            entries, repeats, limit=LIMIT_SECONDS, say=lambda text, n=length: say(f"{n}, {text}")
        )
        for name, result in results.items():
            medians[name] = _known(length, result) or medians.get(name)
            rows.append(_row(name, size, result, results, peak["best"]))
    settings |= {"times": times, "dtype": dtype}
    return {
        "bench": "attention",
        "settings": settings,
        "machine": about,
        "matmul_peak": peak,
        "rows": rows,
    }


def multiply_adds(work, size):
    """Multiply-adds of output and gradients, if the backward pass recomputes the weights.

    Seven products of the size of a scores matrix: q kᵀ and its product with v; then q kᵀ again,
    and the gradients of weights, v, q and k. Four contract or produce `dim` of q and k, three
    that of v. So softmax needs 7 · dim for each visible pair of a query and a key. Linear
    attention, in chunks of c = `choose_chunk`, needs for each token 7 · c · dim for the pairs
    within chunks (hidden ones too, since a chunk is one product), and 7 · dim² for the state: k vᵀ
    and q · state; k vᵀ again, and the gradients of q, k, v and state. Bidirectional attention is
    one sum without chunks, which is not computed again: 6 · dim² for each token. Prefix counts
    the source as bidirectional and the rest as causal. With decays, bidirectional attention has a
    second state, of 7 · dim² more than causal.

    The delta rule, in chunks of c = `kzoo.ops.delta.CHUNK`, has for each token four products inside
    chunks, c · dim, and three with the state, dim². The backward pass computes three and one of
    them again, and two gradients for each. The inverse of a chunk doubles its blocks log2(c / 2)
    times, by two products of c².
    """
    tokens, dim = size.batch * size.heads * size.time, size.dim
    if "delta" in work.mechanism:
        return tokens * (15 * CHUNK * dim + 10 * dim**2 + 2 * int(math.log2(CHUNK / 2)) * CHUNK**2)
    if not _has_state(work, size):
        return tokens * (size.time + 1) // 2 * 7 * dim
    chunked = 7 * min(choose_chunk(dim, dim), size.time) * dim + 7 * dim**2
    decays = work.mechanism in ("retention", "gated_linear")
    whole = chunked + 7 * dim**2 if decays else 6 * dim**2
    if work.mask == "bidirectional":
        return tokens * whole
    if work.mask == "prefix":
        source = size.batch * size.heads * (size.time // 2)
        return source * whole + (tokens - source) * chunked
    return tokens * chunked


# Contestants --------------------------------------------------------------------------------


def _entry(name, work, size, dtype, tensors, known):
    """A function that prepares a contestant, for `race`."""

    def prepare():
        kernel = _kernel(work, size)
        if kernel == "dense" or name == "keras_attention":
            scores = size.batch * size.heads * size.time**2 * 4
            if scores > LIMIT_SCORES:
                raise Skip(f"one dense array of scores would take {scores / 2**30:.1f} GiB")
        if known:
            growth = 1 if _has_state(work, size) else 2
            expected = known[1] * (size.time / known[0]) ** growth
            if expected > LIMIT_SECONDS:
                raise Skip(f"one call would take about {expected:.0f} s")
        if name == "torch_sdpa":
            return _torch(size, dtype, tensors)
        if name == "fla_gated_linear":
            return _fla(tensors, _gates(work, size, dtype))
        if name == "keras_hub_gated_delta":
            return _compiled(_keras_hub(work, size), tensors, _gates(work, size, dtype))
        return _compiled(_function(work, size), tensors, _gates(work, size, dtype))

    return prepare


def _kernel(work, size):
    if work.implementation is None:
        return None
    mask = masks.get(work.mask)
    spec = Spec(size.time, size.time, size.heads, size.dim, size.dim, mask, **here())
    return mechanisms.get(work.mechanism).kernel(spec, work.implementation)


def _function(work, size):
    mechanism, mask = mechanisms.get(work.mechanism), masks.get(work.mask)
    variables = mechanism.variables(_heads(size))

    def attend(q, k, v, gates, source):
        if work.implementation is None:
            return keras.ops.dot_product_attention(q, k, v, is_causal=True)
        own = {"source_mask": source if mask.needs_source else None}
        own |= {"implementation": work.implementation}
        return mechanism.attend(q, k, v, mechanisms.Extras(gates, variables), mask, **own)

    return attend


def _keras_hub(work, size):
    """keras-hub's function of the same tensors: it normalises q and k too."""
    if size.time % PEER_CHUNK or size.time > PEER_LENGTH:
        raise Skip(
            f"keras-hub's takes chunks of {PEER_CHUNK} tokens, and compiles for minutes beyond "
            f"{PEER_LENGTH}, since its loop over them is unrolled"
        )
    try:
        from keras_hub.src.models.qwen3_5 import qwen3_5_gated_delta_net as peer
    except ImportError as error:
        raise Skip("the installed keras-hub has no gated delta rule") from error
    variables = mechanisms.get(work.mechanism).variables(_heads(size))

    def attend(q, k, v, gates, source):
        log_decay = softplus_gates(gates["decay"], variables)
        beta = keras.ops.sigmoid(gates["beta"])
        return peer._chunk_gated_delta_rule(q, k, v, log_decay, beta)[0]

    return attend


def _heads(size):
    return mechanisms.HeadSizes(size.heads, size.heads, size.dim)


def _gates(work, size, dtype):
    """What the mechanism projects tokens to besides, at random, by name."""
    import jax.numpy as jnp

    random = np.random.default_rng(1)
    projections = mechanisms.get(work.mechanism).projections(_heads(size))
    return {
        name: jnp.asarray(random.normal(size=(size.batch, size.time, width)), dtype)
        for name, width in projections.items()
    }


def _has_state(work, size):
    """Whether the mechanism has a state, so that its time is linear in the length."""
    return mechanisms.get(work.mechanism).state_shape(_heads(size)) is not None


def _random_inputs(size, dtype):
    """Queries, keys, values, cotangent, and the source of a prefix."""
    import jax.numpy as jnp

    random = np.random.default_rng(0)
    tensors = [jnp.asarray(random.normal(size=size).astype("float32"), dtype) for _ in range(4)]
    source = np.arange(size.time) < size.time // 2
    return *tensors, jnp.asarray(np.tile(source, (size.batch, 1)), "int32")


def _compiled(attend, tensors, gates):
    import jax

    def both(q, k, v, cotangent, source, gates):
        out, pull = jax.vjp(lambda *floats: attend(*floats, source), q, k, v, gates)
        return out, pull(cotangent)

    tensors = *tensors, gates

    begin = time.perf_counter()
    program = jax.jit(both).lower(*tensors).compile()
    facts = {"compile_seconds": time.perf_counter() - begin}
    memory = program.memory_analysis()
    if memory is None:
        facts["memory_reason"] = "JAX does not know it on this platform"
    else:
        parts = ("argument", "output", "temp")
        facts["memory_bytes"] = sum(getattr(memory, f"{part}_size_in_bytes") for part in parts)
    return Ready(lambda: jax.block_until_ready(program(*tensors)), facts)


def _torch(size, dtype, tensors):
    torch = peer_torch()
    q, k, v, cotangent = (
        torch.from_numpy(np.array(x, "float32")).to(getattr(torch, dtype)) for x in tensors[:4]
    )
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    facts = {"compile_seconds": 0.0, "memory_bytes": _torch_memory(size, dtype)}
    if facts["memory_bytes"] is None:
        facts["memory_reason"] = "this system does not report a process's peak"
    return Ready(lambda: resident.sdpa(torch, q, k, v, cotangent), facts)


def _fla(tensors, gates):
    """flash-linear-attention's definition in chunks, of the gates of the mechanism."""
    torch = peer_torch()
    try:
        from fla.ops.simple_gla.naive import naive_chunk_simple_gla as peer
    except ImportError as error:
        raise Skip(f"flash-linear-attention cannot be imported: {error}") from error
    arrays = [*tensors[:3], gates["decay"], tensors[3]]
    *floats, cotangent = (torch.from_numpy(np.array(x, "float32")) for x in arrays)
    floats = [x.requires_grad_() for x in floats]

    def both():
        q, k, v, decay = floats
        out, _ = peer(q, k, v, torch.nn.functional.logsigmoid(decay) / 16)
        return out, torch.autograd.grad(out, floats, cotangent)

    reason = "not measured: torch does not know it"
    return Ready(both, {"compile_seconds": 0.0, "memory_bytes": None, "memory_reason": reason})


def _torch_memory(size, dtype):
    settings = {**size._asdict(), "dtype": dtype, "threads": processors()}
    # -P: the modules beside the file are not importable by their bare names.
    command = [sys.executable, "-P", str(Path(resident.__file__)), json.dumps(settings)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


# Results ------------------------------------------------------------------------------------


def _known(length, result):
    """A length and the seconds of a call at it, from which those of longer ones are estimated."""
    seconds = result["median_seconds"] or result["first_seconds"]
    return (length, seconds) if seconds else None


def _row(name, size, result, results, peak):
    work = CONTESTANTS[name]
    needed = multiply_adds(work, size)
    median = result["median_seconds"]
    absent = {"compile_seconds": None, "memory_bytes": None, "memory_reason": None}
    return {
        "time": size.time,
        "contestant": name,
        "kernel": _kernel(work, size),
        **absent,
        **result,
        "multiply_adds": needed,
        "peak_fraction": 2 * needed / median / peak if median else None,
        "ratio": {other: ratio(result, results[other]) for other in REFERENCES},
    }
