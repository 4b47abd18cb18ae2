"""Programs compiled for TPUs that are not there: what they need, and what is in them.

The wheel `libtpu` compiles on any Linux machine. The model is made of shapes alone, so that one
of billions of parameters takes no memory here; the program is the one that `fit` runs on such a
machine under `kzoo.distribute`, or what `generate` repeats.
"""

import contextlib
import importlib.util
import logging
import math
import os
import re
import time
from typing import NamedTuple

import keras

from kzoo import presets
from kzoo.config import check_split
from kzoo.errors import InputError, unknown
from kzoo.layers import kernels as kernels_of
from kzoo.models.tasks import LEARNING_RATE
from kzoo.ops.choice import compiling_for
from kzoo.training import hlo
from kzoo.training.distribution import DATA, MODEL, layout
from kzoo.training.flops import count_flops

log = logging.getLogger("kzoo")

GIB = 2**30
DTYPES = ("float32", "mixed_bfloat16", "bfloat16")


class Chip(NamedTuple):
    """A generation of TPUs, as docs.cloud.google.com/tpu/docs has it.

    Attributes:
        memory: bytes.
        peak: multiplications and additions of bfloat16 a second.
        shapes: of its slices.
        accelerator: its name for libtpu, with the number of chips (v5p: of cores) behind it.
        cores: a chip's.
    """

    memory: int
    peak: float
    shapes: tuple
    accelerator: str
    cores: int = 1


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
CHIPS = {
    "v5e": Chip(16 * GIB, 197e12, _FLAT, "v5litepod"),
    "v5p": Chip(95 * GIB, 459e12, _CUBES, "v5p", 2),
    "v6e": Chip(32 * GIB, 918e12, _FLAT, "v6e"),
}
TOPOLOGIES = [f"{name}:{shape}" for name, chip in CHIPS.items() for shape in chip.shapes]


def compile_only(
    name,
    topology,
    batch,
    *,
    mesh=None,
    fsdp=False,
    dtype=None,
    remat="none",
    accumulate=None,
    decode=False,
    quick=False,
    **overrides,
):
    """Compile a preset's train step, or its decoding, for a TPU that is not there.

    Args:
        name: of a preset; its weights are never made.
        topology: one of `TOPOLOGIES`, such as `"v5e:2x4"`.
        batch: rows of a step on all chips together, each `max_sequence_length` tokens.
        mesh: sizes of the mesh axes, such as `{"data": 4, "model": 2}`; by default all chips
            along "data".
        fsdp: split parameters over "data" too.
        dtype: a Keras dtype policy of `DTYPES`; by default Keras's own.
        remat: as in `kzoo.presets.load`.
        accumulate: steps whose gradients make one update, Keras's `gradient_accumulation_steps`.
        decode: compile what `generate` does instead: the pass over prompts that fill the row but
            for one token, and a step of one token.
        quick: leave out XLA's search for the fastest program: a fraction of the time, and a
            program that takes more memory, a little with softmax and up to twice with linear
            attention.
        **overrides: config fields, as in `kzoo.presets.load`.

    Returns:
        A dict of JSON values: the arguments; `parameters`; and `programs`, by name ("train_step",
        or "prefill" and "token") a dict each:

        - `fits`: whether XLA could lay it out in a chip's memory;
        - `memory`: bytes on a chip: `arguments`, `outputs`, of which `donated` reuse arguments,
          `temporaries`, `code`, what they make in `total`, and what the `chip` has;
        - if it does not fit, `over`, bytes, and `remedies`, sentences;
        - `flops`: `needed` by all chips (`count_flops`), the share of `a_chip`, and `compiled`,
          what XLA counts in a chip's program outside of kernels; `seconds` at a chip's peak;
        - `collectives`: by kind `count` and `bytes` of results on a chip;
        - `attention`: by layer the `kernel`, and how many Pallas `calls` are in the program;
        - `seconds`: that tracing and compiling took.

    Raises:
        InputError: if libtpu or JAX are missing; for an unknown preset, field or topology; for a
            mesh that does not divide chips, batch or heads; for a masked LM's decoding.

    Example:
        >>> report = compile_only("gpt_base", "v5e:2x4", 256, dtype="mixed_bfloat16")
        >>> report["programs"]["train_step"]["memory"]["total"] / 2**30
    """
    config = presets.config(name, **overrides)
    target = _target(topology, mesh, batch, config)
    if dtype not in (None, *DTYPES):
        raise unknown("dtype", dtype, DTYPES)
    options = {"fsdp": fsdp, "dtype": dtype, "remat": remat, "accumulate": accumulate}
    model = _model(config, target, **options)
    lower = _decoding if decode else _train_step
    programs = {}
    with _effort(-1.0 if quick else 0.0):
        for part, program in lower(model, config, target, batch).items():
            programs[part] = report = _report(part, program, model, config, target, batch)
            if not report["fits"]:
                half = None
                if batch % (2 * target.sizes[DATA]) == 0:
                    program = lower(model, config, target, batch // 2)[part]
                    half = _report(part, program, model, config, target, batch // 2)
                about = (model, config, target, batch)
                report["remedies"] = _smaller(report, half, model, target, batch)
                if part == "train_step":
                    report["remedies"] += _remedies(report, *about, options)
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


@contextlib.contextmanager
def _effort(effort):
    """XLA's, from -1 to 1, for what is compiled inside."""
    import jax

    before = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", effort)
    try:
        yield
    finally:
        jax.config.update("jax_exec_time_optimization_effort", before)


# The machine ------------------------------------------------------------------------------


class _Target(NamedTuple):
    """What is compiled for: the chip, a `jax.sharding.Mesh`, and the sizes of its axes."""

    chip: Chip
    mesh: object
    sizes: dict


def _target(topology, sizes, batch, config):
    """The `_Target`, once everything divides."""
    if keras.backend.backend() != "jax":
        raise InputError(
            "programs for TPUs are compiled by JAX: KERAS_BACKEND=jax, or --backend jax. "
            f"Received: the backend {keras.backend.backend()!r}"
        )
    if topology not in TOPOLOGIES:
        raise unknown("topology", topology, TOPOLOGIES)
    shape = topology.partition(":")[2]
    chips = math.prod(map(int, shape.split("x")))
    sizes = _sizes(sizes or {}, chips)
    if batch % sizes[DATA]:
        raise InputError(
            f"a batch divides into {sizes[DATA]} along the mesh axis {DATA!r}. Received: {batch}"
        )
    check_split(config, sizes.get(MODEL, 1))
    return _Target(CHIPS[topology.partition(":")[0]], _mesh(topology, sizes), sizes)


def _sizes(given, chips):
    """The mesh axes that `kzoo.distribute` would make: "data" and, above 1, "model"."""
    for axis in given:
        if axis not in (DATA, MODEL):
            raise unknown("mesh axis", axis, (DATA, MODEL))
    model = given.get(MODEL, 1)
    if model < 1 or chips % model or given.get(DATA, chips // model) != chips // model:
        raise InputError(f"data · model is the number of chips, {chips}. Received: {given}")
    return {DATA: chips // model} | ({MODEL: model} if model > 1 else {})


def _mesh(topology, sizes):
    """A `jax.sharding.Mesh` of chips that are not there."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "compiling for a TPU needs libtpu, on Linux: pip install 'kzoo[tpu]'. "
            "Received: no module libtpu"
        )
    generation, _, shape = topology.partition(":")
    chip = CHIPS[generation]
    chips = math.prod(sizes.values())
    # libtpu asks the machine for its TPU, writes logs to /tmp and lets one process in, unless:
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": f"{chip.accelerator}-{chips * chip.cores}",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_LOG_DIR": "disabled",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(variable, value)
    import jax
    import numpy as np
    from jax.experimental import topologies

    alone = {"chips_per_host_bounds": (1, 1, 1)} if chips == 1 else {}
    devices = topologies.get_topology_desc(topology, platform="tpu", **alone).devices
    # In the order of their ids, as Keras arranges devices.
    return jax.sharding.Mesh(np.array(devices).reshape(*sizes.values()), [*sizes])


# The program ------------------------------------------------------------------------------


def _model(config, target, fsdp, dtype, remat, accumulate):
    """The task of a config, its variables without values but with layouts."""

    def split(variable):
        return layout(variable.path, variable.shape, target.sizes, fsdp)

    with _shapes_alone(lambda variable: _sharding(target, *split(variable))):
        model = presets.build(config, dtype, remat=remat)
        if accumulate:
            optimizer = keras.optimizers.AdamW(
                LEARNING_RATE, gradient_accumulation_steps=accumulate
            )
            model.compile(optimizer=optimizer)
        model.optimizer.build(model.trainable_variables)
    return model


@contextlib.contextmanager
def _shapes_alone(lay_out):
    """Inside it Keras's variables get a `jax.sharding.Sharding`, and no memory.

    An optimizer's get those of their parameters from Keras. What is no initializer's, such as an
    optimizer's count of steps, has a value as ever.
    """
    initialize = keras.Variable._initialize_with_initializer
    assign = keras.Variable._direct_assign

    def leave_out(variable, initializer):
        variable._value = None
        variable._initializer = keras.initializers.Zeros()  # where Keras traces shapes alone
        if variable._layout is None:
            variable._layout = lay_out(variable)

    def pass_by(variable, value):
        if variable._layout is None:
            assign(variable, value)

    keras.Variable._initialize_with_initializer = leave_out
    keras.Variable._direct_assign = pass_by
    try:
        yield
    finally:
        keras.Variable._initialize_with_initializer = initialize
        keras.Variable._direct_assign = assign


def _sharding(target, *axes):
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(target.mesh, PartitionSpec(*axes))


def _array(target, shape, dtype, *axes):
    import jax

    return jax.ShapeDtypeStruct(shape, dtype, sharding=_sharding(target, *axes))


def _values(variables, target):
    """What stands for their values in a program."""
    import jax

    whole = _sharding(target)
    return [jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v._layout or whole) for v in variables]


def _train_step(model, config, target, batch):
    """`{"train_step": f}`; f() is what `make_train_function` of Keras compiles, and arguments."""
    import jax

    shape = (batch, config["max_sequence_length"])
    tokens, weight = (_array(target, shape, dtype, DATA) for dtype in ("int32", "float32"))
    data = ({name: tokens for name in model.input}, tokens, weight)

    def make():
        model._symbolic_build(data_batch=data)  # as `fit` does: the variables of metrics
        state = tuple(
            _values(variables, target)
            for variables in (
                model.trainable_variables,
                model.non_trainable_variables,
                model.optimizer.variables,
                model.metrics_variables,
            )
        )
        kept = jax.tree.map(lambda value: value.sharding, state)
        step = jax.jit(model.train_step, donate_argnums=0, out_shardings=(None, kept))
        return step, (state, data)

    return {"train_step": make}


def _decoding(model, config, target, batch):
    """`{"prefill": f, "token": g}`: the pass over prompts and the step of one token."""
    if config["objective"] == "masked_lm" or not hasattr(model, "generate_step"):
        raise InputError(
            "a masked LM predicts hidden tokens and generates no text; families that do are gpt, "
            f"unilm and t5. Received: objective={config['objective']!r}"
        )
    import jax

    time = config["max_sequence_length"]
    rows, column = _array(target, (batch, time), "int32", DATA), _array(target, (), "int32")
    ends, token = (_array(target, shape, "int32", DATA) for shape in ((batch,), (batch, 1)))
    prompts = {"prompt": rows, "row": rows, "start": ends, "source_end": ends}
    if config["num_segments"]:
        prompts |= {"segment_ids": rows, "segments": _array(target, (batch, 2), "int32", DATA)}
    if config["stack"] != "single":
        # The decoder begins with BOS alone.
        prompts |= {"encoder_token_ids": rows, "encoder_padding_mask": rows, "prompt": token}
    backbone, head, values = model.backbone, model.head, _values(model.variables, target)

    def stateless(function):
        def pure(values, *tensors):
            with keras.StatelessScope(state_mapping=zip(model.variables, values, strict=True)):
                return function(*tensors)

        return pure

    def prefill(inputs):
        hidden, cache = backbone.extend(
            inputs["prompt"], model.begin(inputs), 0, None, inputs.get("segment_ids")
        )
        return head(hidden[:, -1:])[:, 0], cache

    def step(token, cache, index):
        hidden, cache = backbone.extend(token, cache, index)
        return head(hidden)[:, 0], cache

    def kept(cache):
        """The shardings of a cache: rows along "data" and heads along "model"."""
        model_axis = MODEL if MODEL in target.sizes else None
        place = {"key": 2, "value": 2, "matrix": 1, "normaliser": 1}

        def split(path, x):
            axes = [DATA] + [None] * (len(x.shape) - 1)
            last = getattr(path[-1], "key", None)
            if last in place:
                axes[place[last]] = model_axis
            return _array(target, x.shape, x.dtype, *axes)

        return jax.tree_util.tree_map_with_path(split, cache)

    def make_prefill():
        _, cache = jax.eval_shape(stateless(prefill), values, prompts)
        shardings = jax.tree.map(lambda x: x.sharding, kept(cache))
        program = jax.jit(stateless(prefill), out_shardings=(None, shardings))
        return program, (values, prompts)

    def make_step():
        _, cache = jax.eval_shape(stateless(prefill), values, prompts)
        cache = kept(cache)
        shardings = jax.tree.map(lambda x: x.sharding, cache)
        program = jax.jit(stateless(step), donate_argnums=2, out_shardings=(None, shardings))
        return program, (values, token, cache, column)

    return {"prefill": make_prefill, "token": make_step}


# The report -------------------------------------------------------------------------------


def _report(part, make, model, config, target, batch):
    """What `compile_only` says of a program."""
    import jax

    begin = time.perf_counter()
    with compiling_for("tpu", target.mesh):
        program, arguments = make()
        lowered = program.lower(*arguments)
    traced = time.perf_counter()
    log.info("compiling %s for %d chips, %d rows", part, target.mesh.size, batch)
    needed = _flops(part, config, batch)
    a_chip = needed / target.mesh.size
    flops = {"needed": needed, "a_chip": a_chip, "seconds": a_chip / target.chip.peak}
    report = {"fits": True, "flops": flops}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        memory = _refused(str(error), _on_a_chip(arguments))
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
    flops["compiled"] = compiled.cost_analysis()["flops"]
    return {
        **report,
        "memory": {**memory, "total": total, "chip": target.chip.memory},
        "collectives": hlo.totals(hlo.collectives(text)),
        "attention": _attention(part, model, config, batch, hlo.kernels(text)),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def _on_a_chip(arrays):
    """Bytes of a nest of `jax.ShapeDtypeStruct` that one chip holds."""
    import jax

    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(arrays)
    )


def _refused(message, arguments):
    """What XLA says it needs and has, if that is why it gave up; else None."""
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
    """What all chips together must do for a batch."""
    row, time_ = sum(count_flops(config).values()), config["max_sequence_length"]
    if part == "train_step":
        return 3 * batch * row
    prompt = row
    if config["stack"] != "single":  # the prompt is the encoder's, a token the decoder's
        head = 2 * config["hidden_dim"] * config["vocabulary_size"] * time_
        prompt = sum(count_flops({**config, "stack": "single"}).values()) - head
        row -= prompt
    return batch * prompt if part == "prefill" else batch * row // time_


def _attention(part, model, config, batch, calls):
    """By layer the kernel that was chosen, and its calls in the compiled program."""
    chosen = kernels_of(model, (batch, config["max_sequence_length"]), "tpu")
    if part != "train_step":
        # Decoding looks back at a cache, which no kernel does: what is not there is not chosen.
        steps = {"splash": "dense", "chunked": "recurrent" if part == "token" else "chunked"}
        chosen = {path: steps.get(kernel, kernel) for path, kernel in chosen.items()}
    found = {}
    for path, kernel in chosen.items():
        if part == "token" and path.startswith("encoder_"):
            continue  # it has read the prompt
        count = sum(f"/{path}/" in call for call in calls)
        if part == "prefill" and count:
            kernel = "splash"
        if (kernel == "splash") != (count > 0):
            log.warning("%s was to run %s; the program has %d kernels", path, kernel, count)
        found[path] = {"kernel": kernel, "calls": count}
    return found


def _smaller(report, half, model, target, batch):
    """How many rows would fit: sentences, with the estimate.

    Args:
        report: of the batch, which did not fit.
        half: of half the batch; None where it cannot be halved.
    """
    if half is None:
        return []
    memory, parts = report["memory"], target.sizes[DATA]
    total, room = memory["total"], memory["available"]
    between = f"linear between compiled totals of {batch} and {batch // 2} rows"
    # What does not depend on the batch is at least the state that a step begins with.
    fixed = max(2 * half["memory"][part] - memory[part] for part in ("total", "arguments"))
    a_row = (total - fixed) / batch
    most = int((room - fixed) / a_row / parts) * parts
    if most < 1:
        return [f"no smaller batch alone: {_size(max(fixed, 0))} do not depend on it ({between})"]
    steps, sums = -(-batch // most), 4 * model.count_params()
    return [
        f"a batch of {most} rows ({between})",
        f"{steps} batches of {-(-batch // steps // parts) * parts} an update: --accumulate {steps} "
        f"(with {_size(sums)} of sums, less where parameters are split)",
    ]


def _remedies(report, model, config, target, batch, options):
    """What else would make a batch fit: sentences, each with its estimate."""
    memory, parts = report["memory"], target.sizes[DATA]
    total, arguments = memory["total"], memory["arguments"]
    work, said = total - arguments, []
    if model.dtype_policy.compute_dtype == "float32":
        said.append(
            f"dtype mixed_bfloat16: up to {_size(work / 2)} less (half of what is no argument)"
        )
    stacks = 1 if config["stack"] == "single" else 2
    layers, tokens = stacks * config["num_layers"], batch * config["max_sequence_length"] // parts
    size = 4 if model.dtype_policy.compute_dtype == "float32" else 2
    logits = 2 * 4 * tokens * config["vocabulary_size"]
    if options["remat"] == "none":
        kept = layers * tokens * config["hidden_dim"] * size
        saved = (work - logits) * (1 - 1 / layers) - kept
        if saved > 0:
            said.append(
                f"remat block: about {_size(saved)} less (one layer of {layers} at a time, and "
                "the input of each)"
            )
    if not config["loss_rows"] and logits > 0.02 * total:
        said.append(f"loss_rows=512: about {_size(logits)} less (logits and their gradient)")
    if not options["fsdp"] and parts > 1:
        split = _model(config, target, **{**options, "fsdp": True})
        values = _values([*split.variables, *split.optimizer.variables], target)
        whole = _values([*model.variables, *model.optimizer.variables], target)
        saved = _on_a_chip(whole) - _on_a_chip(values)
        said.append(f"fsdp: {_size(saved)} of arguments less (from the layouts)")
    return said


def table(report):
    """A report of `compile_only` as a `rich.table.Table`."""
    from rich.table import Table

    mesh = " × ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    title = (
        f"{report['preset']}: {report['parameters']:,} parameters, {report['dtype']}, batch "
        f"{report['batch']} × {report['time']}, {report['topology']} ({mesh})"
    )
    rows = Table("", box=None, title=title, title_justify="left", show_header=False)
    for part, program in report["programs"].items():
        rows.add_row(part, "", style="bold")
        for name, text in _lines(program):
            rows.add_row(f"  {name}", text)
    return rows


def _lines(program):
    memory, flops = program["memory"], program["flops"]
    total = f"{_size(memory['total'])} of {_size(memory['chip'])} a chip"
    if not program["fits"]:
        yield "memory", f"{total}: {_size(program['over'])} too much for what XLA has of it"
        for remedy in program["remedies"]:
            yield "would help", remedy
    else:
        parts = ("arguments", "temporaries", "outputs", "donated", "code")
        parts = ", ".join(f"{name} {_size(memory[name])}" for name in parts)
        yield "memory", f"{total}: {parts}"
    compiled = f"; XLA counts {flops['compiled']:.3g} a chip" if "compiled" in flops else ""
    yield "FLOPs", f"{flops['needed']:.3g} needed, {flops['a_chip']:.3g} a chip{compiled}"
    yield "at the chips' peak", f"{flops['seconds'] * 1e3:.3g} ms, which no step can beat"
    if not program["fits"]:
        return
    for kind, found in program["collectives"].items():
        yield kind, f"{found['count']} of {_size(found['bytes'])} together"
    by_kernel = {}
    for path, found in program["attention"].items():
        by_kernel.setdefault((found["kernel"], found["calls"]), []).append(path)
    for (kernel, calls), paths in by_kernel.items():
        layers = paths[0] if len(paths) == 1 else f"{len(paths)} layers ({paths[0]}, …)"
        yield "attention", f"{kernel}, {calls} Pallas calls each: {layers}"
    yield "compiled in", f"{program['seconds']['compile']} s"


def _size(count):
    unit = max(i for i in range(4) if i == 0 or count >= 1024**i)
    return f"{count / 1024**unit:.3g} {('B', 'KiB', 'MiB', 'GiB')[unit]}"
