"""What a model is given to learn from: examples of a data set, taken apart, for people."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kzoo import masks
from kzoo.encoder import Encoder
from kzoo.vocabulary import Vocabulary


def shown(batch: Any, config: Mapping[str, Any], encoder: Encoder) -> list[dict[str, Any]]:
    """The examples of a batch, in words.

    Args:
        batch: `(x, y, sample_weight)`, as `kzoo.data.load` gives them.
        config: of the model that the batch is for, with its `mask`, `num_layers`, `num_heads`.
        encoder: which made the batch, as of `kzoo.data.pipeline.encoder_of`.

    Returns:
        A dict of JSON values for each example, several for a row into which they are packed:
        `source` (None where there is none) and `target`, two texts; `tokens` and `scored_tokens`,
        two counts; `scored`, the texts that are scored, in order; `reads`, what a single stack, or
        an encoder and a decoder, reads, a list by its name of runs of tokens: `text`, `kind`
        (`"source"`, `"target"` or `"special"`), `scored`, and the `label` where another token is
        to be predicted than the one that is shown; and `sees`, by the same names, what the mask
        lets some queries see: a list of `layers`, `heads` and `queries`, each with its `position`,
        its `text` and `keys`, a string of `1` for each visible key and `0` for each hidden one.

    Example:
        >>> from kzoo.data.pipeline import encoder_of
        >>> config = kzoo.presets.config("unilm_nano")
        >>> encoder = encoder_of(config, config)
        >>> batch = encoder.batch(encoder.tokens(["a"]), encoder.tokens(["bc"]), 6)
        >>> (example,) = shown(batch, config, encoder)
        >>> example["source"], example["target"], example["scored"]
        ('a', 'bc', ['bc[EOS]'])
        >>> [query["keys"] for query in example["sees"]["decoder"][0]["queries"]]
        ['111000', '111000', '111110', '111111']
    """
    x, y, weight = batch
    two = "decoder_token_ids" in x
    found = []
    if encoder.objective.labels is not None:
        rows = ({name: array[i] for name, array in x.items()} for i in range(len(y)))
        return [_labelled(row, y[i], config, encoder) for i, row in enumerate(rows)]
    for i in range(len(y)):
        row = {name: array[i] for name, array in x.items()}
        documents = row["decoder_padding_mask" if two else "padding_mask"]
        for document in range(1, documents.max() + 1):
            columns = np.flatnonzero(documents == document)
            take = _two_stacks if two else _single
            found.append(take(row, y[i], weight[i], columns, document, config, encoder))
    return found


def _single(row, y, weight, columns, document, config, encoder):
    """An example of a single stack."""
    ids, labels, scored = row["token_ids"][columns], y[columns], weight[columns] > 0
    whole, marks, texts = _sequence(ids, labels, scored, encoder.objective.next_token)
    source, target, kinds = _parts(texts, encoder)
    after = None if encoder.objective.next_token else texts
    runs = _runs(whole, kinds, marks, encoder, after)
    sees = _sees(config["mask"], config, row, columns, scored, encoder, whole)
    return _example(source, target, len(columns), marks, {"decoder": runs}, {"decoder": sees})


def _two_stacks(row, y, weight, columns, document, config, encoder):
    """An example of an encoder and a decoder."""
    read = np.flatnonzero(row["encoder_padding_mask"] == document)
    sources = row["encoder_token_ids"][read]
    ids, labels, scored = row["decoder_token_ids"][columns], y[columns], weight[columns] > 0
    whole, marks, texts = _sequence(ids, labels, scored, True)
    unmarked = np.zeros(len(sources), bool)
    reads = {
        "encoder": _runs(sources, _kinds(sources, encoder, "source"), unmarked, encoder),
        "decoder": _runs(whole, _kinds(whole, encoder, "target"), marks, encoder),
    }
    of_encoder = {"padding_mask": row["encoder_padding_mask"]}
    of_decoder = {"padding_mask": row["decoder_padding_mask"]}
    sees = {
        "encoder": _sees(config["mask"], config, of_encoder, read, unmarked, encoder, sources),
        "decoder": _sees("causal", config, of_decoder, columns, scored, encoder, whole),
    }
    source, target = _text(sources, encoder), _text(texts, encoder)
    return _example(source, target, len(read) + len(columns), marks, reads, sees)


def _labelled(row, y, config, encoder):
    """A text and its label, which takes no token."""
    columns = np.flatnonzero(row["padding_mask"])
    ids, unmarked = row["token_ids"][columns], np.zeros(len(columns), bool)
    reads = {"decoder": _runs(ids, _kinds(ids, encoder, "source"), unmarked, encoder)}
    sees = {"decoder": _sees(config["mask"], config, row, columns, unmarked, encoder, ids)}
    label = encoder.objective.labels[int(y)]
    one = _example(_text(ids, encoder), label, len(columns), unmarked, reads, sees)
    return {**one, "scored": [label], "scored_tokens": 1}


def _example(source, target, tokens, marks, reads, sees):
    scored = [run.get("label", run["text"]) for run in _joined(reads["decoder"]) if run["scored"]]
    return {
        "source": source,
        "target": target,
        "tokens": tokens,
        "scored_tokens": int(marks.sum()),
        "scored": scored,
        "reads": reads,
        "sees": sees,
    }


def _sequence(ids, labels, scored, next_token):
    """The ids of a sequence, which of them are scored, and the ids of its text.

    Where the next token is predicted, a sequence is the inputs and the last label. In place, the
    text is in the labels, which say what stands where tokens are hidden.
    """
    if not next_token:
        return ids, scored, labels
    whole, marks = np.append(ids[:1], labels), np.append(False, scored)
    if not scored[-1]:  # the label is padding
        whole, marks = whole[:-1], marks[:-1]
    return whole, marks, whole


def _parts(ids, encoder):
    """The source, the target, and the kind of each token of a sequence in one stack."""
    separators = np.flatnonzero(ids[:-1] == encoder.vocabulary.sep)
    kinds = _kinds(ids, encoder, "target")
    if not len(separators):
        return None, _text(ids, encoder), kinds
    at = separators[0]
    kinds[:at] = _kinds(ids[:at], encoder, "source")
    return _text(ids[:at], encoder), _text(ids[at:], encoder), kinds


def _kinds(ids, encoder, kind):
    return np.where(encoder.vocabulary.is_text(ids), kind, "special").astype(object)


def _text(ids, encoder):
    return encoder.tokenizer.detokenize(ids[encoder.vocabulary.is_text(ids)])


def _spelt(ids, encoder):
    """Ids as text, special ones by their names."""
    text, special = "", ~encoder.vocabulary.is_text(ids)
    edges = np.flatnonzero(np.diff(special)) + 1
    for part in np.split(np.asarray(ids), edges):
        if len(part) and encoder.vocabulary.is_text(part[:1])[0]:
            text += encoder.tokenizer.detokenize(part)
        else:
            text += "".join(name_of(id, encoder.vocabulary) for id in part)
    return text


def name_of(id: int, vocabulary: Vocabulary) -> str:
    """How a special token is written.

    Example:
        >>> name_of(257, kzoo.vocabulary.BYTES), name_of(284, kzoo.vocabulary.BYTES)
        ('[BOS]', '<extra_id_0>')
    """
    for name in ("bos", "sep", "mask", "eos", "pad"):
        if id == getattr(vocabulary, name):
            return f"[{name.upper()}]"
    if id in vocabulary.modes:
        return f"[{'RSX'[vocabulary.modes.index(id)]}]"
    if id in vocabulary.sentinels:
        return f"<extra_id_{vocabulary.sentinels.index(id)}>"
    return f"[{id}]"


def _runs(ids, kinds, scored, encoder, labels=None):
    """Tokens that stand side by side and are of one kind, as one: a list of dicts."""
    same = (kinds[1:] == kinds[:-1]) & (scored[1:] == scored[:-1])
    runs = []
    for at in np.split(np.arange(len(ids)), np.flatnonzero(~same) + 1):
        run = {"text": _spelt(ids[at], encoder), "kind": str(kinds[at[0]])}
        run["scored"] = bool(scored[at[0]])
        if labels is not None and run["scored"]:
            run["label"] = _spelt(labels[at], encoder)
        runs.append(run)
    return runs


def _joined(runs):
    """Runs, those that are scored and stand side by side as one."""
    whole = []
    for run in runs:
        if whole and run["scored"] and whole[-1]["scored"]:
            whole[-1] = {
                name: whole[-1][name] + run[name] if name in ("text", "label") else run[name]
                for name in run
            }
        else:
            whole.append(run)
    return whole


def _sees(spec, config, row, columns, scored, encoder, ids):
    """What a mask lets some queries of an example see, by layers and heads that differ."""
    inputs = {name: row[name][None] for name in ("padding_mask", "source_mask") if name in row}
    found = []
    for layers, layer_mask in _different(masks.per_layer(spec, config["num_layers"])):
        for heads, mask in _different(layer_mask.per_head(config["num_heads"])):
            visible = np.asarray(mask.dense(len(row["padding_mask"]), **inputs))[0, 0]
            queries = [
                {
                    "position": int(at),
                    "text": _spelt(ids[at : at + 1], encoder),
                    "keys": "".join(str(int(seen)) for seen in visible[columns[at], columns]),
                }
                for at in _queries(scored)
            ]
            found.append({"layers": layers, "heads": heads, "queries": queries})
    return found


def _queries(scored):
    """Positions whose view is shown: the first, those of the first and the last prediction (or the
    middle one), the last."""
    last = len(scored) - 1
    predicting = np.flatnonzero(scored)[[0, -1]] if scored.any() else [last // 2]
    return sorted({0, *map(int, predicting), last})


def _different(items):
    """The different items, in order: a list of (the list of its indices, item)."""
    indices: dict[Any, list[int]] = {}
    for i, item in enumerate(items):
        indices.setdefault(item, []).append(i)
    return [(where, item) for item, where in indices.items()]
