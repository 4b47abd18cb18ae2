"""T5 1.0 (Raffel et al. 2020, arXiv:1910.10683) and 1.1 (Shazeer 2020, arXiv:2002.05202)."""

from kzoo import names
from kzoo.convert.family import (
    ACTIVATIONS,
    UNSCALED,
    Family,
    choose,
    dense,
    one,
    renamed,
    require,
    take,
)

SIZES = {
    "vocab_size": "vocabulary_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "d_model": "hidden_dim",
    "d_kv": "head_dim",
    "d_ff": "intermediate_dim",
}
ALIASES = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "hidden_size": "d_model",
    "head_dim": "d_kv",
}
# Of a gate and of none, by transformers' names; and what is written for ours.
KINDS = {
    **ACTIVATIONS,
    **{
        f"gated-{name}": {"gelu": "geglu", "gelu_tanh": "geglu_tanh"}.get(ours)
        for name, ours in ACTIVATIONS.items()
        if ours != "relu"
    },
    "gated-silu": "swiglu",
    "gated-swish": "swiglu",
}
WRITTEN = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "geglu": "gated-gelu_python",
    "geglu_tanh": "gated-gelu",  # the name that transformers takes for gelu_new
    "swiglu": "gated-silu",
}


def _read_config(config, names):
    config = renamed(config, ALIASES)
    sizes = take(config, SIZES)
    require(config, is_encoder_decoder=True)
    depth = config.get("num_decoder_layers")
    # transformers 5 ties in every config.json, and says here whether the model is version 1.0's.
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    return {
        **sizes,
        "decoder_layers": None if depth == sizes["num_layers"] else depth,
        "max_sequence_length": config.get("n_positions", 512),
        "stack": "encoder_decoder",
        "mask": "bidirectional",
        "objective": "prefix_lm",
        "positions": "relative",
        "relative_buckets": config.get("relative_attention_num_buckets", 32),
        "relative_distance": config.get("relative_attention_max_distance", 128),
        "normalization": "rms_norm",
        "activation": _activation(config),
        "use_bias": False,
        "mechanism": UNSCALED,
        "output_scale": sizes["hidden_dim"] ** -0.5 if scaled else 1.0,
        "dropout": config.get("dropout_rate", 0.1),
        "norm_epsilon": config.get("layer_norm_epsilon", 1e-6),
    }


def _activation(config):
    """Ours for what a config.json says in one key, which two others overrule."""
    stated = config.get("feed_forward_proj", "relu")
    act = "gelu_new" if stated == "gated-gelu" else stated.rpartition("-")[2]
    gated = config.get("is_gated_act", stated.startswith("gated-"))
    name = "gated-" * gated + config.get("dense_act_fn", act)
    return choose({"feed_forward_proj": name}, "feed_forward_proj", KINDS, None)


def _write_config(c):
    scaled = c.output_scale != 1.0
    return {
        **{theirs: getattr(c, ours) for theirs, ours in SIZES.items()},
        "num_decoder_layers": c.decoder_depth,
        "n_positions": c.max_sequence_length,
        "relative_attention_num_buckets": c.relative_buckets,
        "relative_attention_max_distance": c.relative_distance,
        "feed_forward_proj": WRITTEN[c.activation],
        "dropout_rate": c.dropout,
        "layer_norm_epsilon": c.norm_epsilon,
        "is_encoder_decoder": True,
        "scale_decoder_outputs": scaled,
    }


def _rms_norm(ours, theirs):
    return one(f"{ours}/scale", f"{theirs}.weight", "d")


def _attention(ours, theirs):
    pairs = []
    for part in ("query", "key", "value"):
        pairs += dense(f"{ours}/{part}", f"{theirs}.{part[0]}", "dh", bias=False)
    return pairs + dense(f"{ours}/output_dense", f"{theirs}.o", "hd", bias=False)


def _pairs(c):
    pairs = one("token_embedding/embeddings", "shared.weight", "vd")
    if not c.tie_embeddings:
        pairs += one("token_embedding/reverse_embeddings", "lm_head.weight", "dv", "transposed")
    for stack in ("encoder", "decoder"):
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        pairs += one(f"{stack}_relative_bias/embeddings", bias, "bn")
        for i in range(c.num_layers if stack == "encoder" else c.decoder_depth):
            ours, theirs = f"{stack}_block_{i}", f"{stack}.block.{i}.layer"
            pairs += _rms_norm(f"{ours}/attention_norm", f"{theirs}.0.layer_norm")
            pairs += _attention(f"{ours}/attention", f"{theirs}.0.SelfAttention")
            if stack == "decoder":
                pairs += _rms_norm(f"{ours}/cross_attention_norm", f"{theirs}.1.layer_norm")
                pairs += _attention(f"{ours}/cross_attention", f"{theirs}.1.EncDecAttention")
            last = f"{theirs}.{2 if stack == 'decoder' else 1}"
            pairs += _rms_norm(f"{ours}/feed_forward_norm", f"{last}.layer_norm")
            gated = names.ACTIVATIONS[c.activation].gated
            inner = {"gate": "wi_0", "intermediate": "wi_1"} if gated else {"intermediate": "wi"}
            for part, name in inner.items():
                their_dense = f"{last}.DenseReluDense.{name}"
                pairs += dense(f"{ours}/feed_forward/{part}", their_dense, "df", bias=False)
            output = f"{last}.DenseReluDense.wo"
            pairs += dense(f"{ours}/feed_forward/output_dense", output, "fd", bias=False)
        pairs += _rms_norm(f"{stack}_final_norm", f"{stack}.final_layer_norm")
    return pairs


T5 = Family(
    model_type="t5",
    architecture=lambda c: "T5ForConditionalGeneration",
    read_config=_read_config,
    write_config=_write_config,
    pairs=_pairs,
    output="lm_head.weight",
    copies={
        "lm_head.weight": "shared.weight",
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    },
    harmless={
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": (
            "a bias of cross-attention that no T5 uses"
        )
    },
    decoder_start=0,
    tokenizer_class="T5Tokenizer",
    special_tokens={"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
)
