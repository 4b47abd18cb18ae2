"""The fields of a model's config: their defaults, their checks, and the parameters they make.

Plain Python over JSON, so that names and mistakes are answered without loading Keras.
"""

from kzoo import masks, mixers, objectives
from kzoo.errors import InputError, unknown
from kzoo.values import LARGEST, is_boolean, is_count, is_integer, is_number, plain
from kzoo.vocabulary import VOCABULARY_SIZE

CONFIG_VERSION = 1
CHECKPOINT_BESIDES = 100_000  # bytes that a checkpoint takes besides its arrays, about
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
    "attention_scale": None,  # on q·k under softmax; 1/√head_dim
    "identity_mix": 0.0,  # ε: attention weights become (1-ε)A + εI
    "positions": "rotary",
    "relative_buckets": 32,
    "relative_distance": 128,  # from which on all share a bucket
    "num_segments": 0,  # of segment embeddings
    "normalization": "layer_norm",
    "norm_placement": "pre",
    "norm_epsilon": 1e-5,
    "embedding_norm": False,
    "activation": "gelu",
    "use_bias": True,
    "dropout": 0.0,
    "initialization": "fan_in",
    "pooler": False,
    "tie_embeddings": True,
    "output_transform": False,  # dense, activation and norm before the output matrix, and a bias
    "output_scale": 1.0,  # on what the output matrix receives
    "tokenizer": "bytes",
    "prediction": "next",  # told by the state of the token before; or by a "mask" in its place
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
    "stack": ("single", "encoder_decoder", "encoder_decoder_shared"),
    "positions": ("none", "learned", "sinusoidal", "rotary", "relative"),
    "normalization": ("layer_norm", "rms_norm"),
    "norm_placement": ("pre", "post"),
    "activation": tuple(mixers.ACTIVATIONS),
    "initialization": ("fan_in", "gpt2"),
    "prediction": ("next", "mask"),
    "tokenizer": ("bytes", "file"),
    "config_version": (CONFIG_VERSION,),
}
WHOLE_SEQUENCE = ("softmax",)  # feature maps of a key that depend on all others
POSITIVE = (
    "vocabulary_size",
    "num_layers",
    "num_heads",
    "kv_heads",
    "head_dim",
    "hidden_dim",
    "intermediate_dim",
    "max_sequence_length",
    "relative_buckets",
    "relative_distance",
)
MOST = {"num_layers": 10_000, "num_heads": 10_000}  # each has a mask of its own
BOOLEAN = ("embedding_norm", "use_bias", "pooler", "tie_embeddings")
# What the backbone takes; the rest belongs to the task and its preprocessor.
HEAD_FIELDS = ("output_transform", "output_scale", "prediction", "loss_rows")
TASK_FIELDS = ("stack", "objective", "tokenizer", *HEAD_FIELDS, "config_version")
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
    config = _complete(fields, DEFAULTS)
    _check_values(config)
    check_head(config)
    mask, objective = masks.get(config["mask"]), objectives.get(config["objective"])
    check_stack(config["stack"], objective)
    if config["stack"] != "single":
        check_two_stacks(config)
    check_objective(mask, objective)
    return {**config, "mask": mask.get_config(), "objective": objective.get_config()}


def resolve_backbone(fields):
    """Like `resolve`, for the fields of a backbone: `mask` becomes a `Mask`."""
    config = _complete(fields, {field: DEFAULTS[field] for field in BACKBONE_FIELDS})
    _check_values(config)
    return {**config, "mask": masks.get(config["mask"])}


def _complete(fields, defaults):
    for field in fields:
        if field not in defaults:
            raise unknown("field", field, defaults)
    config = {**defaults, **plain(fields)}
    missing = [field for field, value in config.items() if value is REQUIRED]
    if missing:
        raise InputError(f"a config needs the fields {', '.join(missing)}. Received: {fields!r}")
    return config


def _check_values(config):
    """Of the fields of `config`, each alone and those of the backbone together."""
    for field, valid in CHOICES.items():
        value = config.get(field, valid[0])
        if field == "feature_map" and isinstance(value, dict) and len(value) == 1:
            (value,) = value  # {"favor": {"features": 64}}
        if value not in valid:
            raise unknown(f"value of {field}", value, valid)
    _resolve_heads(config)
    for field in POSITIVE:
        _check_count(config, field)
    for field in BOOLEAN:
        if not is_boolean(config[field]):
            raise InputError(f"{field} is true or false. Received: {config[field]!r}")
    for field in ("dropout", "identity_mix"):
        if not is_number(config[field]) or not 0 <= config[field] < 1:
            raise InputError(f"{field} is a number in [0, 1). Received: {config[field]!r}")
    for field in ("norm_epsilon", "attention_scale"):
        given = config[field] is not None or DEFAULTS[field] is not None
        if given and not (is_number(config[field]) and config[field] > 0):
            raise InputError(f"{field} is a positive number. Received: {config[field]!r}")
    if not is_count(config["num_segments"], least=0):
        raise InputError(
            f"num_segments is an integer, 0 or more. Received: {config['num_segments']!r}"
        )
    if not is_integer(config["seed"]) or not 0 <= config["seed"] < 2**31:
        raise InputError(f"seed is an integer in [0, 2^31). Received: {config['seed']!r}")
    if config["vocabulary_size"] < VOCABULARY_SIZE and config.get("tokenizer") == "bytes":
        raise InputError(
            f"bytes and their special tokens need a vocabulary_size of {VOCABULARY_SIZE} or more. "
            f"Received: {config['vocabulary_size']}"
        )
    _check_mechanism(config)
    sizes = config["num_layers"], config["num_heads"]
    check_mask(masks.get(config["mask"]), *sizes, config["mechanism"], config["feature_map"])


def check_mask(mask, num_layers, num_heads, mechanism, feature_map="elu1"):
    """`InputError` unless the mask tiles layers and heads and the mechanism can follow it."""
    name = _map_name(feature_map)
    for layer in masks.per_layer(mask, num_layers):
        for head in layer.per_head(num_heads):
            if mechanism == "linear" and not isinstance(head, masks.Order):
                raise InputError(
                    "linear attention follows orders (bidirectional, causal, reversed, prefix, "
                    f"block, permuted), not custom masks or &; use softmax. Received: {head!r}"
                )
            if mechanism == "linear" and name in WHOLE_SEQUENCE and not head.is_full:
                raise InputError(
                    f"the feature map {name!r} normalises keys over time; it needs a bidirectional "
                    f"mask. Received: {head!r}"
                )


def _map_name(feature_map):
    """The name in the spec of a feature map: `"favor"` of `{"favor": {"features": 64}}`."""
    return next(iter(feature_map)) if isinstance(feature_map, dict) else feature_map


def check_split(config, model):
    """`InputError` unless a model can be split over `model` devices, each with its own heads.

    Every device holds the same masks of heads in the same order, or they would run different
    programs.

    Args:
        config: the fields of a backbone, resolved.
        model: the size of the mesh axis "model".
    """
    for field in ("num_heads", "kv_heads", "intermediate_dim"):
        if config[field] % model:
            raise InputError(
                f"{field} divides into the {model} devices along the mesh axis 'model'. "
                f"Received: {field}={config[field]}"
            )
    heads = config["num_heads"]
    for mask in masks.per_layer(config["mask"], config["num_layers"]):
        orders = mask.per_head(heads)
        if orders != orders[: heads // model] * model:
            raise InputError(
                f"each of the {model} devices along the mesh axis 'model' holds whole repetitions "
                f"of the pattern of heads. Received: num_heads={heads} with mask="
                f"{mask!r}"
            )


def _check_mechanism(config):
    """Linear attention has no scores that a bias or a scale could act on."""
    if config["mechanism"] == "linear" and config["positions"] == "relative":
        raise InputError(
            "relative positions are a bias on softmax attention; linear attention takes 'rotary', "
            "'learned', 'sinusoidal' or 'none'. Received: positions='relative'"
        )
    if config["mechanism"] == "linear" and config["attention_scale"] is not None:
        raise InputError(
            "attention_scale belongs to softmax attention; linear attention has none. "
            f"Received: attention_scale={config['attention_scale']!r}"
        )


def check_stack(stack, objective):
    """`InputError` unless the stack suits the objective."""
    two = stack != "single"
    if two != (objective.task == "Seq2SeqLM"):
        right = "'seq2seq'" if two else "'causal_lm', 'continuation' or 'masked_lm'"
        raise InputError(
            f"the stack {stack!r} takes the objective {right}. "
            f"Received: objective={objective.get_config()!r}"
        )


def check_two_stacks(config):
    """`InputError` for what an encoder and a decoder have no place for."""
    mask = masks.get(config["mask"])
    if mask.needs_source:
        raise InputError(
            "the mask is the encoder's, which holds the source alone; use 'bidirectional' for a "
            f"prefix. Received: mask={mask.get_config()!r}"
        )
    name = _map_name(config["feature_map"])
    if config["mechanism"] == "linear" and name in WHOLE_SEQUENCE:
        raise InputError(
            f"the feature map {name!r} normalises keys over time; it needs a bidirectional mask, "
            f"which a decoder has not. Received: stack={config['stack']!r}"
        )
    for field in ("num_segments", "pooler"):
        if config[field]:
            raise InputError(
                f"only a single stack has {field}. Received: {field}={config[field]!r}"
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
    two_stacks = objective.task == "Seq2SeqLM"  # then the mask is the encoder's
    if objective.next_token and not two_stacks and not mask.autoregressive:
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


def check_head(config):
    """`InputError` unless a task's `HEAD_FIELDS` have values that they can have."""
    rows, scale, prediction = (config[f] for f in ("loss_rows", "output_scale", "prediction"))
    if prediction not in CHOICES["prediction"]:
        raise unknown("value of prediction", prediction, CHOICES["prediction"])
    if not is_count(rows, least=0):
        raise InputError(f"loss_rows is a positive integer, or 0 for all. Received: {rows!r}")
    if not is_number(scale) or not scale > 0:
        raise InputError(f"output_scale is a positive number. Received: {scale!r}")
    if not is_boolean(config["output_transform"]):
        raise InputError(
            f"output_transform is true or false. Received: {config['output_transform']!r}"
        )


def tokenizer_kind(cls, vocabulary_size):
    """The field `tokenizer` of a model whose tokenizer has the class of this name, or None.

    Without a tokenizer the number of ids tells whether they are bytes.
    """
    bytes_alone = cls is None and vocabulary_size == VOCABULARY_SIZE
    return "bytes" if cls == "ByteTokenizer" or bytes_alone else "file"


def count_parameters(config):
    """The number of parameters of the model that a complete config describes.

    Example:
        >>> from kzoo import presets
        >>> count_parameters(presets.config("gpt_nano"))
        124608
    """
    d, v = config["hidden_dim"], config["vocabulary_size"]
    norm = d if config["normalization"] == "rms_norm" else 2 * d
    attention = mixers.sequence_mixer(config).parameters()
    feed_forward = mixers.channel_mixer(config).parameters()
    final_norm = norm if config["norm_placement"] == "pre" else 0
    relative = config["relative_buckets"] * config["num_heads"]
    relative *= config["positions"] == "relative"

    layers, own = config["num_layers"], attention + feed_forward + 2 * norm
    stacks = layers * own + final_norm + relative
    if config["stack"] != "single":
        stacks *= 1 if config["stack"] == "encoder_decoder_shared" else 2
        stacks += layers * (attention + norm)  # the decoder's cross-attention
    embeddings = v * d * (1 if config["tie_embeddings"] else 2) + config["num_segments"] * d
    embeddings += config["max_sequence_length"] * d * (config["positions"] == "learned")
    embeddings += norm * config["embedding_norm"]
    pooler = config["pooler"] * (d + 1) * d
    transform = config["output_transform"] * ((d + 1) * d + norm + v)
    return stacks + embeddings + pooler + transform


def checkpoint_bytes(parameters, keep):
    """Bytes that the checkpoints of a run take, about: those that are kept, and a new one.

    Args:
        parameters: of the model; in float32, with the two of AdamW for each.
        keep: how many are kept.

    Example:
        >>> checkpoint_bytes(124_672, keep=3)
        6384256
    """
    return (keep + 1) * (12 * parameters + CHECKPOINT_BESIDES)


def _check_count(config, field):
    most = MOST.get(field, LARGEST)
    if not is_count(config[field]) or config[field] > most:
        raise InputError(
            f"{field} is a positive integer, at most {most}. Received: {config[field]!r}"
        )


def _resolve_heads(config):
    heads, width = config["num_heads"], config["hidden_dim"]
    config["kv_heads"] = heads if config["kv_heads"] is None else config["kv_heads"]
    for field in ("num_heads", "kv_heads", "hidden_dim"):
        _check_count(config, field)
    if config["head_dim"] is None:
        if width % heads:
            near = sorted(range(1, min(width, MOST["num_heads"]) + 1), key=lambda n: abs(n - heads))
            nearest = next(n for n in near if width % n == 0)
            raise InputError(
                f"num_heads divides hidden_dim={width}, or head_dim is given; the nearest is "
                f"{nearest}. Received: num_heads={heads}"
            )
        config["head_dim"] = width // heads
    if heads % config["kv_heads"]:
        raise InputError(f"kv_heads divides num_heads={heads}. Received: {config['kv_heads']}")
    odd = is_integer(config["head_dim"]) and config["head_dim"] % 2
    if config["positions"] == "rotary" and odd:
        raise InputError(f"rotary positions need an even head_dim. Received: {config['head_dim']}")
