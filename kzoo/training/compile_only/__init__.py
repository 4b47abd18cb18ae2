"""Ahead-of-time compilation for TPUs: the memory, FLOPs and kernels of programs.

The package `libtpu` compiles on any Linux machine, without a TPU. The variables of the model are
only shapes, so that billions of parameters take no memory here. The program is the one that `fit`
runs on such a machine under `kzoo.distribute`, or those that `generate` runs.
"""

import contextlib
import logging
import re
import time
from typing import Any

from kzoo import presets
from kzoo.errors import unknown
from kzoo.layers import kernels as kernels_of
from kzoo.ops.context import compiling_for
from kzoo.training import hlo
from kzoo.training.compile_only.attention import attention_costs
from kzoo.training.compile_only.program import decoding, model_of_shapes, on_a_chip, train_step
from kzoo.training.compile_only.suggestions import other_suggestions, smaller_batches
from kzoo.training.compile_only.table import table
from kzoo.training.compile_only.target import target_of
from kzoo.training.distribution import DATA
from kzoo.training.flops import count_flops
from kzoo.training.roofline import program_work

__all__ = ["compile_only", "step_of_a_chip", "table"]

log = logging.getLogger("kzoo")

DTYPES = ("float32", "mixed_bfloat16", "bfloat16")


def compile_only(
    name: str,
    topology: str,
    batch: int,
    *,
    mesh: Any = None,
    fsdp: bool = False,
    dtype: str | None = None,
    remat: str = "none",
    accumulate: int | None = None,
    decode: bool = False,
    quick: bool = False,
    **overrides: Any,
) -> dict[str, Any]:
    """Compile a preset's train step, or its decoding, ahead of time for a TPU.

    Args:
        name: of a preset.
        topology: one of `TOPOLOGIES`, such as `"v5e:2x4"`.
        batch: examples of a step on all chips together, each of `max_sequence_length` tokens.
        mesh: sizes of the mesh axes, such as `{"data": 4, "model": 2}`; by default all chips
            along "data".
        fsdp: split parameters over "data" too.
        dtype: a Keras dtype policy of `DTYPES`; by default Keras's own.
        remat: as in `kzoo.presets.load`.
        accumulate: steps whose gradients make one update, Keras's `gradient_accumulation_steps`.
        decode: compile what `generate` runs instead: the pass over prompts that fill all of it but
            for one token, and a step of one token.
        quick: compile without XLA's optimizations, in a fraction of the time. The program takes
            more memory: a little where attention has a kernel, up to twice as much where it has
            none. Attentions are not compiled alone then.
        **overrides: config fields, as in `kzoo.presets.load`.

    Returns:
        A dict of JSON values: the arguments; `parameters`; and `programs`, by name ("train_step",
        or "prefill" and "token") a dict each:

        - `fits`: whether the program fits into a chip's memory;
        - `memory`: bytes on a chip: `arguments`, `outputs`, of which `donated` reuse arguments,
          `temporaries`, `code`, their `total`, and what the `chip` has;
        - if it does not fit, `over`, the missing bytes, and `suggestions`, a list of sentences;
        - `flops`: `needed` by all chips (`count_flops`), the share of `a_chip`, and `compiled`,
          those of the matrix products in a chip's program, loops by their lengths and kernels by
          their grids; `seconds` at a chip's peak;
        - `bytes`: what a chip's program moves to and from its memory, counted alike, and
          `roofline_seconds`, the time of its products or of its bytes, whichever is longer;
        - `collectives`: for each kind `count` and `bytes` of results on a chip;
        - `attention`: for each layer the `kernel`, how many Pallas `calls` the program has and,
          of a train step, its `alone`: what `attention_costs` says;
        - `seconds`: of tracing and compiling.

    Raises:
        InputError: if libtpu or JAX are missing; for an unknown preset, field or topology; for a
            mesh that does not divide chips, batch or heads; for a masked LM's decoding.

    Example:
        >>> report = compile_only("gpt_base", "v5e:2x4", 256, dtype="mixed_bfloat16")
        >>> report["programs"]["train_step"]["memory"]["total"] / 2**30
    """
    config = presets.config(name, **overrides)
    target = target_of(topology, mesh, batch, config)
    if dtype not in (None, *DTYPES):
        raise unknown("dtype", dtype, DTYPES)
    options = {"fsdp": fsdp, "dtype": dtype, "remat": remat, "accumulate": accumulate}
    model = model_of_shapes(config, target, **options)
    lower = decoding if decode else train_step
    programs = {}
    with _optimization("O0" if quick else "UNKNOWN"):
        for part, program in lower(model, config, target, batch).items():
            programs[part] = report = _report(part, program, model, config, target, batch)
            if part == "train_step" and report["fits"] and not quick:
                costs = attention_costs(model, target, batch, config["max_sequence_length"])
                for path, found in report["attention"].items():
                    found["alone"] = costs[path]
            if not report["fits"]:
                half = None
                if batch % (2 * target.sizes[DATA]) == 0:
                    program = lower(model, config, target, batch // 2)[part]
                    half = _report(part, program, model, config, target, batch // 2)
                about = (model, config, target, batch)
                report["suggestions"] = smaller_batches(report, half, model, target, batch)
                if part == "train_step":
                    report["suggestions"] += other_suggestions(report, *about, options)
    return {
        "preset": name,
        "overrides": overrides,
        "topology": topology,
        "chips": target.mesh.size,
        "mesh": target.sizes,
        "batch": batch,
        "time": config["max_sequence_length"],
        **{**options, "dtype": model.dtype_policy.name, "quick": quick},
        "parameters": model.count_params(),
        "programs": programs,
    }


def step_of_a_chip(
    config: dict[str, Any], chip: str, batch: int, *, dtype: str | None = None, quick: bool = False
) -> dict[str, Any]:
    """What `compile_only` reports of the train step of a config, on one chip by itself.

    Args:
        config: a complete config, as of `kzoo.presets.config`.
        chip: of `CHIPS`, such as `"v5e"`, one that has slices of one chip.
        batch, dtype, quick: as of `compile_only`. Attentions are not compiled alone.

    Returns:
        The dict of a program, without suggestions, and its `parameters` and `dtype`.

    Raises:
        InputError: as `compile_only`.

    Example:
        >>> step = step_of_a_chip(presets.config("gpt_small"), "v5e", 16)
        >>> step["fits"], step["roofline_seconds"]
    """
    target = target_of(f"{chip}:1x1", None, batch, config)
    if dtype not in (None, *DTYPES):
        raise unknown("dtype", dtype, DTYPES)
    options = {"fsdp": False, "dtype": dtype, "remat": "none", "accumulate": None}
    model = model_of_shapes(config, target, **options)
    with _optimization("O0" if quick else "UNKNOWN"):
        program = train_step(model, config, target, batch)["train_step"]
        report = _report("train_step", program, model, config, target, batch)
    return {**report, "parameters": model.count_params(), "dtype": model.dtype_policy.name}


@contextlib.contextmanager
def _optimization(level):
    """A context with an optimization level of XLA: "O0" to "O3", or "UNKNOWN", its default."""
    import jax

    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", level)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def _report(part, make, model, config, target, batch):
    """What `compile_only` reports of one program."""
    import jax

    begin = time.perf_counter()
    with compiling_for("tpu", target.mesh):
        program, arguments = make()
        program = program.trace(*arguments)
        lowered = program.lower()
    traced = time.perf_counter()
    log.info("compiling %s for %d chips, %d examples", part, target.mesh.size, batch)
    needed = _flops(part, config, batch)
    a_chip = needed / target.mesh.size
    flops = {"needed": needed, "a_chip": a_chip, "seconds": a_chip / target.chip.peak}
    report = {"fits": True, "flops": flops}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        memory = _out_of_memory(str(error), on_a_chip(arguments))
        if memory is None:
            raise
        report |= {"fits": False, "over": memory["total"] - memory["available"]}
        return {**report, "memory": {**memory, "chip": target.chip.memory}}
    seconds = {"trace": traced - begin, "compile": time.perf_counter() - traced}
    stats, text = compiled.memory_analysis(), compiled.as_text()
    memory = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "donated": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    total = sum(memory.values()) - 2 * memory["donated"]
    work = program_work(program.jaxpr, text, target.mesh.size)
    flops["compiled"] = work.flops
    return {
        **report,
        "bytes": work.bytes,
        "roofline_seconds": target.chip.seconds(work),
        "memory": {**memory, "total": total, "chip": target.chip.memory},
        "collectives": hlo.totals(hlo.collectives(text)),
        "attention": _attention(part, model, config, batch, hlo.kernels(text)),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def _out_of_memory(message, arguments):
    """The memory that XLA says it needs and has, if this is why it failed; else None."""
    size = r"([\d.]+)([KMGT]?)"
    match = re.search(rf"temporaries \({size}\) exceeds available HBM \({size}\)", message)
    besides = arguments
    if match is None:
        match, besides = re.search(rf"Used {size} of {size} hbm", message), 0
    if match is None:
        return None
    scale = {unit: 2 ** (10 * i) for i, unit in enumerate(["", "K", "M", "G", "T"])}
    needed, available = (
        round(float(number) * scale[unit])
        for number, unit in (match.group(1, 2), match.group(3, 4))
    )
    return {"arguments": arguments, "total": needed + besides, "available": available}


def _flops(part, config, batch):
    """The FLOPs that all chips together need for a batch."""
    example, time_ = sum(count_flops(config).values()), config["max_sequence_length"]
    if part == "train_step":
        return 3 * batch * example
    prompt = example
    if config["stack"] != "single":  # the prompt is the encoder's, a token the decoder's
        head = 2 * config["hidden_dim"] * config["vocabulary_size"] * time_
        prompt = sum(count_flops({**config, "stack": "single"}).values()) - head
        example -= prompt
    return batch * prompt if part == "prefill" else batch * example // time_


def _attention(part, model, config, batch, calls):
    """For each layer the kernel of its attention, and its calls in the compiled program."""
    chosen = kernels_of(model, (batch, config["max_sequence_length"]), "tpu")
    if part != "train_step":
        # No kernel reads a cache; splash computes prompts, which begin with an empty one.
        steps = {"splash": "dense", "pallas": "chunk_scan"}
        if part == "token":
            steps |= dict.fromkeys(("pallas", "chunk_scan"), "recurrent")
        chosen = {path: steps.get(kernel, kernel) for path, kernel in chosen.items()}
    found = {}
    for path, kernel in chosen.items():
        if part == "token" and path.startswith("encoder_"):
            continue  # the encoder read the prompt in the prefill
        count = sum(f"/{path}/" in call for call in calls)
        if part == "prefill" and count:
            kernel = "splash"
        if (kernel in ("splash", "pallas")) != (count > 0):
            log.warning("%s was to run %s; the program has %d kernels", path, kernel, count)
        found[path] = {"kernel": kernel, "calls": count}
    return found
