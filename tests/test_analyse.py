"""The measures of an analysis against recomputation by hand, and an analysis as a whole."""

import csv
import json

import numpy as np
import pytest
import scipy.linalg
import small_models
from keras import ops

from kzoo import data, mechanisms, models, presets
from kzoo.analysis import (
    analyse,
    attention_maps,
    attention_spectrum,
    cache_reuse,
    collapse,
    control_spectrum,
    gradient_norms,
)
from kzoo.analysis import memory as memory_room
from kzoo.analysis.collapse import NORMS, _reduced, _residual
from kzoo.cli import main
from kzoo.errors import InputError
from kzoo.studies.analysis import analyse_study
from kzoo.training import Checkpoints

TIME, SOURCE = 14, 10
ONE_LAYER = {"num_layers": 1}
EVERY_MASK = ["bidirectional", "causal", "prefix", "reversed"]


def batch(time=TIME, seed=0):
    ids = np.random.default_rng(seed).integers(0, 256, (2, time)).astype("int32")
    source = np.tile(np.arange(time) < SOURCE, (2, 1)).astype("int32")
    return {"token_ids": ids, "padding_mask": np.ones_like(ids), "source_mask": source}


def values(model):
    return {v.path: ops.convert_to_numpy(v).astype("float64") for v in model.weights}


def normed(x, weights, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return x * weights[f"{name}/gamma"] + weights[f"{name}/beta"]


def projected(x, weights, name, heads=None):
    x = x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]
    return x if heads is None else x.reshape(len(x), heads, -1).swapaxes(0, 1)


def softmax_weights(x, weights, heads, visible=True):
    q, k = (projected(x, weights, f"block_0/attention/{name}", heads) for name in ("query", "key"))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    powers = np.where(visible, np.exp(scores), 0)
    return powers / powers.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def softmax():
    """One layer of two heads, bidirectional, without positions, so that it can be written down."""
    return small_models.load("bert", num_layers=1, positions="none")


@pytest.fixture(scope="module")
def linear():
    """A head of each mask."""
    sizes = {**small_models.SMALL, "num_layers": 1, "num_heads": 4, "hidden_dim": 32}
    options = {"mechanism": "linear", "mask": {"heads": EVERY_MASK}, "positions": "none"}
    return models.SingleStackBackbone(**sizes, **options)


# Spectra ----------------------------------------------------------------------------------------


def test_spectrum_is_that_of_weights_written_down_in_numpy(softmax):
    weights, x = values(softmax), batch()
    heads = attention_spectrum(softmax, x)
    figures = []
    for ids in x["token_ids"]:
        state = normed(
            weights["token_embedding/embeddings"][ids], weights, "block_0/attention_norm"
        )
        figures.append([])
        for matrix in softmax_weights(state, weights, 2):
            sigma = scipy.linalg.svdvals(matrix)
            p, energy = sigma / sigma.sum(), sigma**2
            figures[-1].append(
                (
                    *(np.linalg.matrix_rank(matrix), np.exp(-(p * np.log(p)).sum())),
                    *(energy.sum() / energy[0], np.log(np.linalg.cond(matrix))),
                    np.argmax(np.cumsum(energy) >= 0.99 * energy.sum()) + 1,
                    np.abs(matrix).mean() / np.sqrt((matrix**2).mean()),
                )
            )
    for head, expected in zip(heads, np.mean(figures, axis=0), strict=True):
        names = ("numerical_rank", "entropy_rank", "stable_rank", "condition", "k99")
        found = [head[name] for name in (*names, "concentration")]
        found[3] = np.log(found[3])
        np.testing.assert_allclose(found, expected, rtol=2e-3)
        assert head["epsilon"] == 2.0**-52


def test_rank_of_linear_attention_in_a_model_is_exactly_what_theory_says(linear):
    """Of d_φ = 8 features: min(n, 8), n, (n − p) + min(p, 8), n."""
    heads = attention_spectrum(linear, batch())
    assert [head["mask"] for head in heads] == EVERY_MASK
    assert [head["numerical_rank"] for head in heads] == [8, TIME, TIME - SOURCE + 8, TIME]


def test_controls_have_the_rank_without_the_direction(linear, softmax):
    x = batch()
    found = {}
    for head in control_spectrum(linear, x, identity=0.2):
        found.setdefault(head.pop("control"), []).append(head)
    assert set(found) == {"as it is", "identity mix", "permuted"}  # linear follows orders alone
    assert found["as it is"] == attention_spectrum(linear, x)
    for control in ("identity mix", "permuted"):
        assert {head["numerical_rank"] for head in found[control]} == {TIME}
    mixed = [0.8 * m["weights"] + 0.2 * np.eye(TIME) for m in attention_maps(linear, x, 1)]
    other = [0.8 * m["weights"] + 0.2 * np.eye(TIME) for m in attention_maps(linear, x, 0)]
    stable = [np.square(np.linalg.norm(m) / np.linalg.norm(m, 2)) for m in (*mixed, *other)]
    for head, a, b in zip(found["identity mix"], stable[:4], stable[4:], strict=True):
        np.testing.assert_allclose(head["stable_rank"], (a + b) / 2)

    names = {head["control"] for head in control_spectrum(softmax, x)}
    assert names == {"as it is", "identity mix", "permuted", "random half"}
    with pytest.raises(InputError, match="between 0 and 1. Received: 1$"):
        control_spectrum(softmax, x, identity=1)


def test_maps_are_the_weights_without_padding(softmax):
    weights, x = values(softmax), batch()
    x["padding_mask"][1, -3:] = 0
    maps = attention_maps(softmax, x, example=1)
    ids = x["token_ids"][1, :-3]
    state = normed(weights["token_embedding/embeddings"][ids], weights, "block_0/attention_norm")
    expected = softmax_weights(state, weights, 2)
    np.testing.assert_allclose([each["weights"] for each in maps], expected, atol=1e-6)
    with pytest.raises(InputError, match="0 to 1. Received: 2"):
        attention_maps(softmax, x, example=2)


class NoWeights(mechanisms.Mechanism):
    name = "no_weights"


def test_a_mechanism_without_weights_is_refused_by_name(softmax, monkeypatch):
    attention = softmax.backbone.transformer_layers[0].attention
    monkeypatch.setattr(attention, "mechanism", NoWeights())
    with pytest.raises(InputError, match="no_weights attention gives no weights"):
        attention_spectrum(softmax, batch())


def test_sizes_that_do_not_fit_are_refused_with_one_that_does(softmax, monkeypatch):
    monkeypatch.setattr(memory_room, "available", lambda: 20_000)
    with pytest.raises(InputError, match=r": (\d+) tokens fit. Received: 14 tokens") as refused:
        attention_spectrum(softmax, batch())
    fitting = int(str(refused.value).split(": ")[1].split()[0])
    assert 1 < fitting < TIME
    memory_room.check_fits(softmax, batch(fitting))
    with pytest.raises(InputError):
        memory_room.check_fits(softmax, batch(fitting + 1))


# Collapse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_residuals_of_states_whose_squares_overflow(norm):
    x = np.random.default_rng(0).normal(size=(6, 4))
    assert _residual(x * 1e200, norm) == pytest.approx(_residual(x, norm), rel=1e-12)


def test_attention_alone_collapses_as_written_down_in_numpy(softmax):
    before, x = values(softmax), batch()
    alone = collapse(softmax, x, skips=False, feed_forward=False, norms=False, norm="composite")
    assert [depth["without"] for depth in alone] == ["skips, feed_forward, norms"] * 2
    weights, residuals = before, []
    for ids in x["token_ids"]:
        state = weights["token_embedding/embeddings"][ids]
        v = projected(state, weights, "block_0/attention/value", 2)
        gathered = (softmax_weights(state, weights, 2) @ v).swapaxes(0, 1).reshape(TIME, -1)
        out = projected(gathered, weights, "block_0/attention/output_dense")
        for tokens in (out, out[TIME // 2 :]):
            norms = [
                np.sqrt(np.abs(each).sum(0).max() * np.abs(each).sum(1).max())
                for each in (tokens - tokens.mean(0), tokens)
            ]
            residuals.append(norms[0] / norms[1])
    found = [alone[1]["residual"], alone[1]["residual_last_half"]]
    expected = [np.mean(residuals[::2]), np.mean(residuals[1::2])]
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # it is computed in float64
    after = values(softmax)
    assert all((before[path] == after[path]).all() for path in before)
    with pytest.raises(InputError, match="unknown norm"):
        collapse(softmax, x, norm="l2")


@pytest.mark.slow
def test_a_copy_with_all_parts_is_the_model(linear):
    t5 = small_models.load("t5", norm_placement="post", num_layers=1)
    of_t5 = data.load("synthetic:copy", t5, batch_size=2, seed=1).valid[0][0]
    for model, x in ((linear, batch()), (t5, of_t5)):
        whole = collapse(model, x)
        for name, states, mask in _reduced(model, x, skips=True, feed_forward=True, norms=True):
            assert [state.dtype for state in states] == ["float64"] * 2
            for state in states:
                tokens = [each[keep != 0] for each, keep in zip(state, mask, strict=True)]
                residuals = [np.linalg.norm(x - x.mean(0)) / np.linalg.norm(x) for x in tokens]
                depth = whole.pop(0)
                assert depth["stack"] == name
                np.testing.assert_allclose(depth["residual"], np.mean(residuals), rtol=1e-4)


def test_quantised_weights_are_not_left_out_of(softmax):
    model = small_models.load("bert", num_layers=1)
    model.quantize("int8")
    with pytest.raises(InputError, match="before quantize, or without"):
        collapse(model, batch(), skips=False)


# Gradients --------------------------------------------------------------------------------------


@pytest.mark.backends
def test_gradient_norms_are_those_of_finite_differences():
    model = small_models.load("gpt", num_layers=1)
    x, y, weight = data.load("synthetic:copy", model, batch_size=4, seed=0).valid[0]
    layers = {layer["name"]: layer for layer in gradient_norms(model, (x, y, weight))}
    assert list(layers) == ["token_embedding", "block_0", "final_norm"]
    assert layers["block_0"]["layer"] == 0 and layers["final_norm"]["layer"] is None
    assert sum(layer["parameters"] for layer in layers.values()) == model.count_params()

    def loss():
        nll = small_models.nll(small_models.logits(model, x), y)
        return (nll * weight).sum() / weight.sum()

    norm = model.backbone.get_layer("final_norm")
    slopes, size = [], 0.02
    for variable in norm.trainable_variables:
        value = ops.convert_to_numpy(variable)
        for i in range(0, len(value), 4):
            sides = []
            for sign in (1, -1):
                variable.assign(value + sign * size * (np.arange(len(value)) == i))
                sides.append(loss())
            variable.assign(value)
            slopes.append((sides[0] - sides[1]) / (2 * size))
    # A quarter of the entries.
    assert 0.2 < np.linalg.norm(slopes) / layers["final_norm"]["gradient_norm"] < 0.9
    with pytest.raises(InputError, match="of a task, and of a batch"):
        gradient_norms(model.backbone, (x, y, weight))


# Reuse of caches --------------------------------------------------------------------------------


@pytest.mark.parametrize("family, layers", [("gpt", 1), ("unilm", 2), ("t5", 1)])
def test_caches_are_reused_where_later_turns_change_nothing(family, layers):
    """What a prefix mask changes is seen from the second layer on."""
    model = small_models.load(family, num_layers=layers, max_sequence_length=32)
    first, second = cache_reuse(model, ["Who?", "And I?"], repeats=1)
    assert first["key_change"] is first["value_change"] is None
    assert first["reused"] == first["shared"] == 0 and first["seconds"] > 0
    assert second["shared"] == first["tokens"] == first["encoded"]
    changes = second["key_change"], second["value_change"]
    if family == "gpt":
        assert changes == (0, 0) and second["reused"] == first["tokens"]
    else:
        assert second["reused"] == 0 and second["encoded"] == second["tokens"]
        assert min(changes) > 1e-3


def test_conversations_that_cannot_be_measured(softmax):
    with pytest.raises(InputError, match="two turns or more. Received: 'Who"):
        cache_reuse(softmax, "Who are you?")
    with pytest.raises(InputError, match="generates no text"):
        cache_reuse(softmax, ["Who?", "I?"])


# Along training ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of `Checkpoints` with those of steps 1 and 2, and the model after them."""
    folder = tmp_path_factory.mktemp("run")
    model = small_models.load("gpt", num_layers=1)
    train = data.load("synthetic:copy", model, batch_size=4).train
    checkpoints = Checkpoints(folder / "checkpoints", every=1)
    model.fit(train, epochs=1, steps_per_epoch=2, verbose=0, callbacks=[checkpoints])
    return folder, model


@pytest.mark.slow
def test_an_analysis_follows_a_run(trained, tmp_path, caplog):
    folder, model = trained
    arguments = {"measures": ["spectrum", "maps"], "examples": 2, "length": 12}
    found = analyse(folder / "checkpoints", "synthetic:copy", **arguments)
    assert [head["step"] for head in found.records["spectrum"]] == [1, 1, 2, 2]
    batch_ = data.load("synthetic:copy", model, batch_size=2).valid[0][0]
    last = attention_spectrum(model, {name: x[:, :12] for name, x in batch_.items()})
    for head, expected in zip(found.records["spectrum"][2:], last, strict=True):
        assert {name: head[name] for name in expected} == expected

    # The same folder as `kzoo train` leaves it: with initial values, and the last ones.
    presets.save(model, folder)
    run = {"settings": {"config": model.config}, "result": {"steps": 2}}
    (folder / "training.json").write_text(json.dumps(run))
    metadata = folder / "checkpoints" / "1" / "facts" / "metadata"
    metadata.write_bytes(metadata.read_bytes() + b" ")
    whole = analyse(folder, "synthetic:copy", **arguments)
    heads = whole.records["spectrum"]
    names = [("initial", 0), ("checkpoint", 2), ("last", 2)]
    assert [(head["snapshot"], head["step"]) for head in heads[::2]] == names
    assert "step 1 is left out: the checkpoint is damaged" in caplog.text
    assert heads[2]["entropy_rank"] == heads[4]["entropy_rank"] != heads[0]["entropy_rank"]
    fresh = analyse(
        "gpt_nano", "synthetic:copy", **arguments, **{**small_models.SMALL, **ONE_LAYER}
    )
    assert fresh.records["spectrum"] == heads[:2]

    # Its files.
    whole.save(tmp_path)
    with open(tmp_path / "spectrum.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["entropy_rank"]) for row in rows] == [head["entropy_rank"] for head in heads]
    content = json.loads((tmp_path / "analysis.json").read_text())
    assert content["records"] == {"spectrum": heads}
    assert content["facts"]["config"] == model.config
    maps = np.load(tmp_path / "maps.npz")
    assert [each["weights"].shape for each in whole.records["maps"]] == [(12, 12)] * 6
    np.testing.assert_array_equal(maps["row_5"], whole.records["maps"][5]["weights"])
    with pytest.raises(InputError, match="analysed as it was trained.*num_layers"):
        analyse(folder, "synthetic:copy", num_layers=2)


def test_an_analysis_of_a_study(tmp_path):
    overrides = {**small_models.SMALL, **ONE_LAYER}
    arm = {"preset": "gpt_nano", "overrides": overrides, "data": ["synthetic:copy"]}
    study = {"name": "mine", "description": "", "arms": {"GPT": arm}, "data": ["synthetic:copy"]}
    study |= {"seeds": [3, 4], "steps": 2, "batch_size": 4, "learning_rate": None}
    (tmp_path / "study.json").write_text(json.dumps(study))
    record = {"run": "synthetic:copy/GPT/4", "arm": "GPT", "data": "synthetic:copy", "seed": 4}
    record |= {"steps": 2, "spectrum": [{"layer": 0, "head": 0, "entropy_rank": 5.0}]}
    (tmp_path / "results.jsonl").write_text(json.dumps(record) + "\n")
    found = analyse_study(tmp_path, measures=["spectrum"], examples=2)
    *initial, last = found.records["spectrum"]
    assert {(head["seed"], head["step"], head["arm"]) for head in initial} == {(3, 0, "GPT")}
    alone = analyse("gpt_nano", "synthetic:copy", measures=["spectrum"], seed=3, **overrides)
    assert len(initial) == len(alone.records["spectrum"]) == 2
    assert (last["seed"], last["snapshot"], last["entropy_rank"]) == (4, "last", 5.0)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = [f"--set={name}={value}" for name, value in {**small_models.SMALL, **ONE_LAYER}.items()]
    command = ["analyse", "bert_nano", *sizes, "--text=synthetic:copy"]
    assert main([*command, "--examples=2", "--measures=spectrum,gradients"]) == 0
    said = capsys.readouterr().out
    assert "step 0, initial  0      bidirectional" in said
    assert "4 files in runs/bert_nano-analysis: analysis.json, spectrum.csv" in said
    assert (tmp_path / "runs/bert_nano-analysis/spectrum.svg").read_text().startswith("<svg")
    for wrong, message in (
        (["--measures=spectra"], "unknown measure; did you mean 'spectrum'?"),
        (["--measures=reuse"], "generates no text"),
        (["--length=999"], "length is at most the"),
    ):
        assert main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(["analyse", "nothing"]) == 2
    assert "unknown preset" in capsys.readouterr().err
