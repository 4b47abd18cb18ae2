"""What older versions saved, in today's words.

Saved models, checkpoints and records of studies are migrated when they are read. In an override or
a new study an old name is refused, with the new one named.

`config_version` 1 had a field for each option of a mechanism (`feature_map`, `attention_scale`),
the objectives `continuation` and `seq2seq`, and other names of two fields.
"""

from collections.abc import Mapping

from kzoo.errors import InputError

CONFIG_VERSION = 2
FIELDS = {"loss_rows": "loss_tokens", "prediction": "prediction_site"}
# Fields of config_version 1 that are options of a mechanism now: the mechanism, the option, and the
# value that version 1 had by default.
OPTIONS = {
    "feature_map": ("linear", "feature_map", "elu1"),
    "attention_scale": ("softmax", "scale", None),
}
# Fields that came later, and what models do without them.
LATER = {
    "decoder_layers": None,
    "qk_norm": "default",
    "output_norm": False,
    "output_gate": False,
    "short_convolution": 0,
    "short_convolution_activation": "silu",
}
# The packing of studies and runs that were saved before there was a choice: the sequences of an
# encoder and of a decoder were both as long as the longest example in one sequence.
PACKING = {"padded": {"equal_lengths": True}}
# Objectives of config_version 1. `seq2seq` was `continuation` for an encoder and a decoder; now the
# layout of a stack decides how an example is written.
OBJECTIVES = {"continuation": "prefix_lm", "seq2seq": "prefix_lm"}


def objective(spec):
    """The JSON of an objective, with the name that it has today.

    Args:
        spec: the JSON of an objective of any config_version.

    Example:
        >>> objective({"continuation": {"score": "all"}})
        {'prefix_lm': {'score': 'all'}}
    """
    if isinstance(spec, Mapping):
        return {OBJECTIVES.get(name, name): fields for name, fields in spec.items()}
    return OBJECTIVES.get(spec, spec) if isinstance(spec, str) else spec


def config(fields, complete=False):
    """The fields of a saved config, or some of them, with today's names and values.

    What is in today's words already comes back as it is.

    Args:
        fields: a mapping of names to JSON values.
        complete: whether it has all fields of its time, so that those that came later are missing.

    Returns:
        A dict.

    Example:
        >>> config({"mechanism": "linear", "feature_map": "relu", "loss_rows": 512})
        {'mechanism': {'linear': {'feature_map': 'relu'}}, 'loss_tokens': 512}
    """
    fields = {FIELDS.get(name, name): value for name, value in fields.items()}
    old = {name: fields.pop(name) for name in OPTIONS if name in fields}
    for field, value in old.items():
        mechanism, option, default = OPTIONS[field]
        # An option of another mechanism than the model's had no effect.
        if value != default and fields.get("mechanism", "softmax") == mechanism:
            fields["mechanism"] = {mechanism: {option: value}}
    if "objective" in fields:
        fields["objective"] = objective(fields["objective"])
    if "config_version" in fields and fields["config_version"] == 1:
        fields["config_version"] = CONFIG_VERSION
    return {**LATER, **fields} if complete else fields


def study(fields):
    """The JSON of a saved study, whose arms have overrides."""
    arms = fields.get("arms") if isinstance(fields, Mapping) else None
    if not isinstance(arms, Mapping):
        return fields  # no study, as the reader says
    fields = {"packing": PACKING, **fields}
    return {**fields, "arms": {label: _with(arm, "overrides") for label, arm in arms.items()}}


def record(fields):
    """The record of a run, or the settings that stand beside a checkpoint: what they say of a
    model's config and its overrides in today's words."""
    return _with(_with(fields, "config", complete=True), "overrides")


def _with(fields, name, complete=False):
    """A mapping whose item `name`, where it has one, is a migrated config."""
    inner = fields.get(name) if isinstance(fields, Mapping) else None
    return {**fields, name: config(inner, complete)} if isinstance(inner, Mapping) else fields


def refuse_old_field(name, value):
    """`InputError` for a field's old name, which names the new one."""
    if name in FIELDS:
        raise InputError(
            f"the field {name!r} is {FIELDS[name]!r} now. Received: {name}={value!r:.120}"
        )
    if name in OPTIONS:
        mechanism, option, _ = OPTIONS[name]
        raise InputError(
            f"{name} is an option of the mechanism now: mechanism="
            f"{ {mechanism: {option: value}} }, or --set mechanism.{mechanism}.{option}=VALUE on "
            f"the command line. Received: {name}={value!r:.120}"
        )


def refuse_old_objective(spec):
    """`InputError` for an objective's old name, which names the new one."""
    name = next(iter(spec), None) if isinstance(spec, Mapping) else spec
    if isinstance(name, str) and name in OBJECTIVES:
        raise InputError(
            f"the objective {name!r} is {OBJECTIVES[name]!r} now, for every stack; saved models "
            f"and records are read as they are. Received: {spec!r:.120}"
        )
