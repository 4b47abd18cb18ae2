"""GPT-2: Radford et al. 2019, Language Models are Unsupervised Multitask Learners."""

from kzoo.convert.family import (
    ACTIVATIONS,
    UNSCALED,
    Family,
    TensorPair,
    choose,
    layer_norm,
    name_of,
    one,
    renamed,
    require,
    scale,
    take,
)

SIZES = {
    "vocab_size": "vocabulary_size",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_embd": "hidden_dim",
    "n_positions": "max_sequence_length",
}
ALIASES = {
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
}


def _read_config(config, names):
    config = renamed(config, ALIASES)
    require(config, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    sizes = take(config, SIZES)
    return {
        **sizes,
        "intermediate_dim": config.get("n_inner") or 4 * sizes["hidden_dim"],
        "mask": "causal",
        "objective": "causal_lm",
        "positions": "learned",
        "activation": choose(config, "activation_function", ACTIVATIONS, "gelu_new"),
        "mechanism": "softmax" if config.get("scale_attn_weights", True) else UNSCALED,
        "dropout": config.get("resid_pdrop", 0.1),
        "norm_epsilon": config.get("layer_norm_epsilon", 1e-5),
        "initialization": "gpt2",
    }


def _write_config(c):
    return {
        **{theirs: getattr(c, ours) for theirs, ours in SIZES.items()},
        "n_inner": c.intermediate_dim,
        "activation_function": name_of(ACTIVATIONS, c.activation),
        "scale_attn_weights": scale(c) in (None, c.head_dim**-0.5),
        **{name: c.dropout for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")},
        "layer_norm_epsilon": c.norm_epsilon,
    }


def _dense(ours, theirs, shape):
    """Kernels stand as [in, out], as ours do; several of ours may stand side by side."""
    how = "same" if len(ours) == 1 else "joined"
    kernel = TensorPair(f"{theirs}.weight", tuple(f"{path}/kernel" for path in ours), shape, how)
    bias = TensorPair(f"{theirs}.bias", tuple(f"{path}/bias" for path in ours), shape[-1], how)
    return [kernel, bias]


def _pairs(c):
    pairs = one("token_embedding/embeddings", "transformer.wte.weight", "vd")
    if not c.tie_embeddings:
        pairs += one("token_embedding/reverse_embeddings", "lm_head.weight", "dv", "transposed")
    pairs += one("position_embedding/embeddings", "transformer.wpe.weight", "pd")
    for i in range(c.num_layers):
        ours, theirs = f"block_{i}", f"transformer.h.{i}"
        qkv = [f"{ours}/attention/{part}" for part in ("query", "key", "value")]
        pairs += layer_norm(f"{ours}/attention_norm", f"{theirs}.ln_1")
        pairs += _dense(qkv, f"{theirs}.attn.c_attn", "dh")
        pairs += _dense([f"{ours}/attention/output_dense"], f"{theirs}.attn.c_proj", "hd")
        pairs += layer_norm(f"{ours}/feed_forward_norm", f"{theirs}.ln_2")
        pairs += _dense([f"{ours}/feed_forward/intermediate"], f"{theirs}.mlp.c_fc", "df")
        pairs += _dense([f"{ours}/feed_forward/output_dense"], f"{theirs}.mlp.c_proj", "fd")
    return pairs + layer_norm("final_norm", "transformer.ln_f")


GPT2 = Family(
    model_type="gpt2",
    architecture=lambda c: "GPT2LMHeadModel",
    read_config=_read_config,
    write_config=_write_config,
    pairs=_pairs,
    prefix="transformer.",
    heads=("lm_head.",),
    output="lm_head.weight",
    copies={"lm_head.weight": "transformer.wte.weight"},
    harmless={r"transformer\.h\.\d+\.attn\.(masked_)?bias": "the causal mask, as a buffer"},
    tokenizer_class="GPT2Tokenizer",
    special_tokens={"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
)
