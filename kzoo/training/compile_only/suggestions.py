"""Suggestions for a program that does not fit into memory, each with an estimate."""

from kzoo.training.compile_only.program import model_of_shapes, on_a_chip, values_of
from kzoo.training.compile_only.table import in_units
from kzoo.training.distribution import DATA


def smaller_batches(report, half, model, target, batch):
    """How many examples would fit: sentences with an estimate.

    Args:
        report: of the program that does not fit.
        half: the report at half the batch; None if the batch cannot be halved.
    """
    if half is None:
        return []
    memory, parts = report["memory"], target.sizes[DATA]
    total, room = memory["total"], memory["available"]
    between = f"linear between compiled totals of {batch} and {batch // 2} examples"
    # The memory that does not depend on the batch is at least that of the training state.
    fixed = max(2 * half["memory"][part] - memory[part] for part in ("total", "arguments"))
    an_example = (total - fixed) / batch
    most = int((room - fixed) / an_example / parts) * parts
    if most < 1:
        return [
            f"no smaller batch alone: {in_units(max(fixed, 0))} do not depend on it ({between})"
        ]
    steps, sums = -(-batch // most), 4 * model.count_params()
    return [
        f"a batch of {most} examples ({between})",
        f"{steps} batches of {-(-batch // steps // parts) * parts} an update: --accumulate {steps} "
        f"(with {in_units(sums)} of sums, less where parameters are split)",
    ]


def other_suggestions(report, model, config, target, batch, options):
    """What else would make the batch fit: sentences, each with an estimate."""
    memory, parts = report["memory"], target.sizes[DATA]
    total, arguments = memory["total"], memory["arguments"]
    work, said = total - arguments, []
    if model.dtype_policy.compute_dtype == "float32":
        said.append(
            f"dtype mixed_bfloat16: up to {in_units(work / 2)} less (half of what is no argument)"
        )
    decoder = config.get("decoder_layers") or config["num_layers"]
    layers = config["num_layers"] + (0 if config["stack"] == "single" else decoder)
    tokens = batch * config["max_sequence_length"] // parts
    size = 4 if model.dtype_policy.compute_dtype == "float32" else 2
    logits = 2 * 4 * tokens * config["vocabulary_size"]
    if options["remat"] == "none":
        kept = layers * tokens * config["hidden_dim"] * size
        saved = (work - logits) * (1 - 1 / layers) - kept
        if saved > 0:
            said.append(
                f"remat block: about {in_units(saved)} less (one layer of {layers} at a time, and "
                "the input of each)"
            )
    if not config["loss_tokens"] and logits > 0.02 * total:
        said.append(f"loss_tokens=512: about {in_units(logits)} less (logits and their gradient)")
    if not options["fsdp"] and parts > 1:
        split = model_of_shapes(config, target, **{**options, "fsdp": True})
        values = values_of([*split.variables, *split.optimizer.variables], target)
        whole = values_of([*model.variables, *model.optimizer.variables], target)
        saved = on_a_chip(whole) - on_a_chip(values)
        said.append(f"fsdp: {in_units(saved)} of arguments less (from the layouts)")
    return said
