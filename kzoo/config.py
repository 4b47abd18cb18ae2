"""The fields of a model's config: their defaults, their checks, and the parameters they make.

Plain Python over JSON, so that names and mistakes are answered without loading Keras.
"""

from kzoo import masks, objectives
from kzoo.errors import InputError, unknown
from kzoo.vocabulary import VOCABULARY_SIZE

CONFIG_VERSION = 1
REQUIRED = object()
DEFAULTS = {
    "vocabulary_size": VOCABULARY_SIZE,
    "num_layers": REQUIRED,
    "num_heads": REQUIRED,
    "kv_heads": None,  # as many as num_heads
    "head_dim": None,  # hidden_dim / num_heads
    "hidden_dim": REQUIRED,
    "intermediate_dim": REQUIRED,
    "max_sequence_length": REQUIRED,
    "mask": REQUIRED,
    "mechanism": "softmax",
    "feature_map": "elu1",
    "stack": "single",
    "objective": REQUIRED,
    "positions": "rotary",
    "normalization": "layer_norm",
    "norm_placement": "pre",
    "activation": "gelu",
    "dropout": 0.0,
    "tie_embeddings": True,
    "tokenizer": "bytes",
    "loss_rows": 0,  # tokens whose logits training holds at once; 0 for all
    "seed": 0,
    "config_version": CONFIG_VERSION,
}
CHOICES = {
    "mechanism": ("softmax", "linear"),
    "feature_map": (
        "elu1",
        "relu",
        "squared_relu",
        "exp",
        "softmax",
        "taylor2",
        "favor",
        "hedgehog",
    ),
    "stack": ("single",),
    "positions": ("none", "learned", "sinusoidal", "rotary"),
    "normalization": ("layer_norm", "rms_norm"),
    "norm_placement": ("pre", "post"),
    "activation": ("gelu", "relu", "geglu", "swiglu"),
    "tokenizer": ("bytes",),
    "config_version": (CONFIG_VERSION,),
}
POSITIVE = (
    "vocabulary_size",
    "num_layers",
    "num_heads",
    "kv_heads",
    "head_dim",
    "hidden_dim",
    "intermediate_dim",
    "max_sequence_length",
)
GATED = ("geglu", "swiglu")
# What the backbone takes; the rest belongs to the task and its preprocessor.
TASK_FIELDS = ("stack", "objective", "tokenizer", "loss_rows", "config_version")
BACKBONE_FIELDS = tuple(field for field in DEFAULTS if field not in TASK_FIELDS)


def resolve(fields):
    """A complete config from some of its fields, with nothing left to resolve.

    Args:
        fields: mapping of field names to values; those without a default must be there.

    Returns:
        A dict with every field of `DEFAULTS`, JSON throughout; `mask` and `objective` in
        their shortest form.

    Raises:
        InputError: unknown field or value, heads that do not divide the width, a mask that
            does not tile the heads or layers, that the mechanism cannot follow, or that
            would show the objective its answer.
    """
    for field in fields:
        if field not in DEFAULTS:
            raise unknown("field", field, DEFAULTS)
    config = {**DEFAULTS, **fields}
    missing = [field for field, value in config.items() if value is REQUIRED]
    if missing:
        raise InputError(f"a config needs the fields {', '.join(missing)}. Received: {fields!r}")
    for field, valid in CHOICES.items():
        value = config[field]
        if field == "feature_map" and isinstance(value, dict) and len(value) == 1:
            (value,) = value  # {"favor": {"features": 64}}
        if value not in valid:
            raise unknown(f"value of {field}", value, valid)
    _resolve_heads(config)
    for field in POSITIVE:
        if not _is_integer(config[field]) or config[field] < 1:
            raise InputError(f"{field} is a positive integer. Received: {config[field]!r}")
    check_loss_rows(config["loss_rows"])
    if not _is_integer(config["seed"]) or not 0 <= config["seed"] < 2**31:
        raise InputError(f"seed is an integer in [0, 2^31). Received: {config['seed']!r}")
    dropout = config["dropout"]
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise InputError(f"dropout is a number in [0, 1). Received: {dropout!r}")
    if not isinstance(config["tie_embeddings"], bool):
        raise InputError(f"tie_embeddings is true or false. Received: {config['tie_embeddings']!r}")
    if config["vocabulary_size"] < VOCABULARY_SIZE:
        raise InputError(
            f"bytes and their special tokens need a vocabulary_size of {VOCABULARY_SIZE} or more. "
            f"Received: {config['vocabulary_size']}"
        )

    mask, objective = masks.get(config["mask"]), objectives.get(config["objective"])
    check_mask(mask, config["num_layers"], config["num_heads"], config["mechanism"])
    check_objective(mask, objective)
    return {**config, "mask": mask.get_config(), "objective": objective.get_config()}


def check_mask(mask, num_layers, num_heads, mechanism):
    """`InputError` unless the mask tiles layers and heads and the mechanism can follow it."""
    for layer in masks.per_layer(mask, num_layers):
        for head in layer.per_head(num_heads):
            if mechanism == "linear" and not isinstance(head, masks.Order):
                raise InputError(
                    "linear attention follows orders (bidirectional, causal, reversed, prefix, "
                    f"block, permuted), not custom masks or &; use softmax. Received: {head!r}"
                )


def check_objective(mask, objective):
    """`InputError` if the mask would show the objective its answer, or lacks its source.

    A leak test does not catch the first: such a mask allows what it shows.
    """
    try:
        spec = mask.get_config()
    except InputError:  # a custom mask has no JSON
        spec = mask
    received = f"Received: mask={spec!r} with objective={objective.get_config()!r}"
    if objective.next_token and not mask.autoregressive:
        raise InputError(
            "this mask would show a next-token loss its answer; every head and layer must be "
            f"causal or prefix, or the objective 'masked_lm'. {received}"
        )
    scores_source = getattr(objective, "score", None) == "all"
    if mask.needs_source and (not objective.has_source or scores_source):
        raise InputError(
            "a prefix mask shows the source whole, so only its continuation can be scored; "
            f"use the objective 'continuation', or the mask 'causal'. {received}"
        )


def check_loss_rows(rows):
    """`InputError` unless a task's `loss_rows` is an integer, 0 or more."""
    if not _is_integer(rows) or rows < 0:
        raise InputError(f"loss_rows is a positive integer, or 0 for all. Received: {rows!r}")


def count_parameters(config):
    """The number of parameters of the model that a complete config describes.

    Example:
        >>> from kzoo import presets
        >>> count_parameters(presets.config("gpt_nano"))
        124608
    """
    d, f = config["hidden_dim"], config["intermediate_dim"]
    heads, kv_heads = (config[name] * config["head_dim"] for name in ("num_heads", "kv_heads"))
    norm = d if config["normalization"] == "rms_norm" else 2 * d
    attention = (d + 1) * (heads + 2 * kv_heads) + (heads + 1) * d
    if config["mechanism"] == "linear" and "hedgehog" in config["feature_map"]:
        attention += 2 * heads * config["head_dim"]
    inner = 2 if config["activation"] in GATED else 1
    feed_forward = inner * (d + 1) * f + (f + 1) * d
    blocks = config["num_layers"] * (attention + feed_forward + 2 * norm)
    final_norm = norm if config["norm_placement"] == "pre" else 0
    embeddings = config["vocabulary_size"] * d * (1 if config["tie_embeddings"] else 2)
    positions = config["max_sequence_length"] * d if config["positions"] == "learned" else 0
    return blocks + final_norm + embeddings + positions


def _resolve_heads(config):
    heads, width = config["num_heads"], config["hidden_dim"]
    config["kv_heads"] = heads if config["kv_heads"] is None else config["kv_heads"]
    for field in ("num_heads", "kv_heads", "hidden_dim"):
        if not _is_integer(config[field]) or config[field] < 1:
            raise InputError(f"{field} is a positive integer. Received: {config[field]!r}")
    if config["head_dim"] is None:
        if width % heads:
            divisors = [n for n in range(1, width + 1) if width % n == 0]
            nearest = min(divisors, key=lambda n: abs(n - heads))
            raise InputError(
                f"num_heads divides hidden_dim={width}, or head_dim is given; the nearest is "
                f"{nearest}. Received: num_heads={heads}"
            )
        config["head_dim"] = width // heads
    if heads % config["kv_heads"]:
        raise InputError(f"kv_heads divides num_heads={heads}. Received: {config['kv_heads']}")
    odd = _is_integer(config["head_dim"]) and config["head_dim"] % 2
    if config["positions"] == "rotary" and odd:
        raise InputError(f"rotary positions need an even head_dim. Received: {config['head_dim']}")


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)
