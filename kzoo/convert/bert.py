"""BERT (Devlin et al. 2019, arXiv:1810.04805) and UniLM (Dong et al. 2019, arXiv:1905.03197).

UniLM is BERT with six segments and a prefix mask: its tensors have BERT's names.
"""

import dataclasses

from kzoo.convert.family import (
    ACTIVATIONS,
    Family,
    choose,
    dense,
    layer_norm,
    name_of,
    one,
    require,
    take,
)

SIZES = {
    "vocab_size": "vocabulary_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "hidden_size": "hidden_dim",
    "intermediate_size": "intermediate_dim",
    "max_position_embeddings": "max_sequence_length",
    "type_vocab_size": "num_segments",
}
UNILM_SEGMENTS = 6
POOLER, TRANSFORM = "bert.pooler.dense", "cls.predictions.transform"


def _read_config(config, names):
    require(config, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    return {
        **take(config, SIZES),
        "mask": "bidirectional",
        "objective": "masked_lm",
        "positions": "learned",
        "norm_placement": "post",
        "activation": choose(config, "hidden_act", ACTIVATIONS, "gelu"),
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "norm_epsilon": config.get("layer_norm_eps", 1e-12),
        "embedding_norm": True,
        "pooler": any(name.startswith(POOLER) for name in names),
        "output_transform": any(name.startswith(TRANSFORM) for name in names),
    }


def _read_unilm_config(config, names):
    config = {"type_vocab_size": UNILM_SEGMENTS, **config}
    own = {"mask": "prefix", "objective": "prefix_lm", "prediction_site": "mask"}
    return _read_config(config, names) | own


def _write_config(c):
    return {
        **{theirs: getattr(c, ours) for theirs, ours in SIZES.items()},
        "type_vocab_size": max(1, c.num_segments),
        # Only the masked-LM head of transformers has an output matrix.
        "tie_word_embeddings": c.tie_embeddings or not c.output_transform,
        "hidden_act": name_of(ACTIVATIONS, c.activation),
        "position_embedding_type": "absolute",
        **{f"{part}_dropout_prob": c.dropout for part in ("hidden", "attention_probs")},
        "layer_norm_eps": c.norm_epsilon,
    }


def _pairs(c):
    embeddings = "bert.embeddings"
    pairs = one("token_embedding/embeddings", f"{embeddings}.word_embeddings.weight", "vd")
    pairs += one("position_embedding/embeddings", f"{embeddings}.position_embeddings.weight", "pd")
    pairs += one("segment_embedding/embeddings", f"{embeddings}.token_type_embeddings.weight", "sd")
    pairs += layer_norm("embedding_norm", f"{embeddings}.LayerNorm")
    for i in range(c.num_layers):
        ours, theirs = f"block_{i}", f"bert.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            pairs += dense(f"{ours}/attention/{part}", f"{theirs}.attention.self.{part}", "dh")
        pairs += dense(f"{ours}/attention/output_dense", f"{theirs}.attention.output.dense", "hd")
        pairs += layer_norm(f"{ours}/attention_norm", f"{theirs}.attention.output.LayerNorm")
        pairs += dense(f"{ours}/feed_forward/intermediate", f"{theirs}.intermediate.dense", "df")
        pairs += dense(f"{ours}/feed_forward/output_dense", f"{theirs}.output.dense", "fd")
        pairs += layer_norm(f"{ours}/feed_forward_norm", f"{theirs}.output.LayerNorm")
    if c.pooler:
        pairs += dense("pooler", POOLER, "dd")
    if c.output_transform:
        pairs += dense("head/dense", f"{TRANSFORM}.dense", "dd")
        pairs += layer_norm("head/norm", f"{TRANSFORM}.LayerNorm")
        pairs += one("head/bias", "cls.predictions.bias", "v")
    if not c.tie_embeddings:
        output = "cls.predictions.decoder.weight"
        pairs += one("token_embedding/reverse_embeddings", output, "dv", "transposed")
    return pairs


def _architecture(c):
    if not c.output_transform:
        return "BertModel"
    return "BertForPreTraining" if c.pooler else "BertForMaskedLM"


def _notes(c):
    kind = _architecture(c)
    if c.mask.needs_source:
        yield f"{kind} sees everything unless it is given the prefix mask, [batch, 1, time, time]"
    if kind == "BertModel" and not c.pooler:
        yield "BertModel draws a pooler at random, which this model lacks"
    if kind == "BertForPreTraining":
        yield "BertForPreTraining draws cls.seq_relationship at random, which this model lacks"


BERT = Family(
    model_type="bert",
    architecture=_architecture,
    notes=_notes,
    read_config=_read_config,
    write_config=_write_config,
    pairs=_pairs,
    prefix="bert.",
    heads=("cls.",),
    renamed=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    output="cls.predictions.decoder.weight",
    copies={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"},
    overruling={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    harmless={
        r"bert\.embeddings\.(position_ids|token_type_ids)": "numbers of positions, as a buffer",
        r"cls\.seq_relationship\.(weight|bias)": "next-sentence prediction, which kzoo lacks",
    },
    tokenizer_class="BertTokenizer",
    special_tokens={
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
)
UNILM = dataclasses.replace(BERT, model_type="unilm", read_config=_read_unilm_config)
