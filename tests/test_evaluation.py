"""Evaluation: log p by hand from logits, ranked choices, what models write, probes, metrics."""

import json
import math
import re
import types

import keras
import numpy as np
import pytest
from marks import once
from small_models import SMALL, nll

import kzoo
from kzoo import evaluation, presets
from kzoo.errors import InputError
from kzoo.evaluation import METRICS, Evaluation, evaluate
from kzoo.evaluation.choices import ChoiceMetric
from kzoo.evaluation.examples import labelled
from kzoo.evaluation.probes import LinearProbe, fit, held_out_predictions

BATCH, TIME = 4, 64  # of all batches here, so that each model compiles one program
BOS, EOS, SEP, PAD = 257, 258, 260, 256
PAIRS = [("Call me", " Ishmael."), ("", "é!"), ("to be or not", " to be"), ("a", "b")]
QUESTIONS = [
    {"question": "2 + 2 =", "choices": ["4", "five"], "answer": 0},
    {"question": "3 + 2 =", "choices": ["four", "5", "sécs"], "answer": "5"},
    {"question": "1 + 2 =", "choices": ["3", "eleven"], "answer": 0},
]
SHOTS = [("0 + 0 =", "0"), ("1 + 1 =", "2")]


def small(family, **overrides):
    fields = {**SMALL, "num_layers": 1, "max_sequence_length": TIME, **overrides}
    return presets.load(f"{family}_nano", **fields)


@pytest.fixture(scope="module")
def gpt():
    return small("gpt")


@pytest.fixture(scope="module")
def models(gpt):
    """A UniLM that has learned to answer, so that it writes letters and ends; others as drawn."""
    unilm = small("unilm", max_sequence_length=32)
    unilm.compile(optimizer=keras.optimizers.Adam(0.02), weighted_metrics=[evaluation.ExactMatch()])
    answers = {"prompts": ["to", "or", "x"] * 4, "responses": ["be", "not", "yes"] * 4}
    unilm.fit(answers, batch_size=12, epochs=40, verbose=0)
    return {"gpt": gpt, "unilm": unilm, "t5": small("t5")}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    lines = ["the whale and the whaling ship", "a whale is whiter than the ship"] * 4
    return kzoo.data.train_tokenizer(lines, size=400, directory=tmp_path_factory.mktemp("bpe"))


# log p ------------------------------------------------------------------------------------------


def padded(*ids):
    row = [token for part in ids for token in part]
    return row + [PAD] * (TIME - len(row)), [1] * len(row) + [0] * (TIME - len(row))


def by_hand(model, pairs):
    """log p and greediness of each pair, from the logits of sequences written here."""
    found = []
    for context, continuation in pairs:
        before, after = list(context.encode()), list(continuation.encode())
        if model.backbone.stack_name == "encoder_decoder":
            ids, mask = padded([BOS], after[:-1])
            read, reads = padded([BOS], before, [SEP])
            x = {"encoder_token_ids": read, "encoder_padding_mask": reads}
            x |= {"decoder_token_ids": ids, "decoder_padding_mask": mask}
            start = 0
        else:
            prefix = [BOS, *before, *[SEP] * ("source_mask" in model.input)]
            ids, mask = padded(prefix, after[:-1])
            x = {"token_ids": ids, "padding_mask": mask}
            if "source_mask" in model.input:
                x["source_mask"] = [1] * len(prefix) + [0] * (TIME - len(prefix))
            start = len(prefix) - 1
        batch = {name: np.array([row] * BATCH, "int32") for name, row in x.items()}
        logits = keras.ops.convert_to_numpy(model.predict_on_batch(batch))[0]
        logits = logits[start : start + len(after)].astype("float64")
        greedy = (logits.argmax(-1) == after).all()
        found.append((-nll(logits, np.array(after)).sum(), bool(greedy)))
    return found


@pytest.mark.backends
@pytest.mark.parametrize("family", [once("gpt"), "unilm", once("t5")])
def test_log_p_is_that_of_the_logits(family):
    model = small(family)
    found = evaluation.loglikelihood(model, PAIRS, batch_size=BATCH)
    expected = by_hand(model, PAIRS)
    np.testing.assert_allclose(found["loglikelihood"], [p for p, _ in expected], rtol=1e-5)
    assert found["is_greedy"].tolist() == [greedy for _, greedy in expected]
    assert found["tokens"].tolist() == [len(after.encode()) for _, after in PAIRS]
    assert found["cut"] == 0


def test_log_p_does_not_depend_on_the_batch(gpt):
    whole = evaluation.loglikelihood(gpt, PAIRS, batch_size=BATCH)["loglikelihood"]
    turned = evaluation.loglikelihood(gpt, PAIRS[::-1], batch_size=BATCH)["loglikelihood"]
    assert (whole == turned[::-1]).all()
    alone = [evaluation.loglikelihood(gpt, [pair], batch_size=BATCH) for pair in PAIRS]
    assert (whole == [one["loglikelihood"][0] for one in alone]).all()


def test_log_p_is_the_score_of_a_pair(gpt):
    """`score` shows pairs with a separator, and sums up the same."""
    found = evaluation.loglikelihood(gpt, PAIRS, batch_size=BATCH, separated=True)
    score = gpt.score(PAIRS, batch_size=BATCH, end_token=False)
    np.testing.assert_allclose(-found["loglikelihood"], score["nats"], rtol=1e-6)
    assert found["tokens"].tolist() == score["tokens"].tolist()


def test_tokens_of_a_continuation_are_those_of_the_whole_without_the_contexts(tokenizer):
    from tokenizers import Tokenizer

    peer = Tokenizer.from_file(str(tokenizer))
    model = small("gpt", tokenizer=tokenizer)
    pairs = [("the wh", "ale is whiter than a ship"), ("the ", "ship"), ("", "whale")]
    found = evaluation.loglikelihood(model, pairs, batch_size=BATCH)

    def tokens(text):
        return peer.encode(text, add_special_tokens=False).ids

    bos = peer.token_to_id("[BOS]")
    for i, (context, continuation) in enumerate(pairs):
        whole, given = tokens(context + continuation), len(tokens(context.rstrip()))
        x = {"token_ids": [bos, *whole[:-1]], "padding_mask": [1] * len(whole)}
        x = {name: np.array([row + [0] * (TIME - len(row))] * BATCH) for name, row in x.items()}
        logits = np.asarray(model.predict_on_batch(x), "float64")[0, given : len(whole)]
        log_p = -nll(logits, np.array(whole[given:])).sum()
        assert found["loglikelihood"][i] == pytest.approx(log_p, rel=1e-6)
        assert found["tokens"][i] == len(whole) - given
    context, continuation = pairs[0]
    assert tokens(context) + tokens(continuation) != tokens(context + continuation)
    assert len(tokens("the wh")) >= len(tokens("the whale"))
    with pytest.raises(InputError, match="at least one token of its own. Received: 'ale'"):
        evaluation.loglikelihood(model, [("the wh", "ale")])


def test_a_context_that_does_not_fit_loses_its_beginning(models, caplog):
    for model in (models["gpt"], models["t5"]):
        long, short = "x" * 100 + "Call me", "x" * 3 + "Call me"
        room = TIME - len(" Ishmael.") - (1 if model is models["t5"] else 0)
        with caplog.at_level("WARNING", "kzoo"):
            found = evaluation.loglikelihood(model, [(long, " Ishmael.")], batch_size=BATCH)
        assert found["cut"] == 1 and "1 of 1 contexts" in caplog.text
        fits = [(long[-room:], " Ishmael."), (short, " Ishmael.")]
        log_p = evaluation.loglikelihood(model, fits, batch_size=BATCH)["loglikelihood"]
        assert found["loglikelihood"][0] == log_p[0] != log_p[1]
        with pytest.raises(InputError, match="a continuation fits in 64 tokens"):
            evaluation.loglikelihood(model, [("a", "x" * 70)], batch_size=BATCH)


def test_what_has_no_log_p_is_refused(models):
    with pytest.raises(
        InputError, match="predicts hidden ones, or labels; models of the families gpt"
    ):
        evaluation.loglikelihood(small("bert"), PAIRS)
    with pytest.raises(InputError, match="predicts hidden ones"):
        evaluation.answers(small("unilm", objective="unilm"), ["a"])
    with pytest.raises(InputError, match="separated is True or None for an objective that has"):
        evaluation.loglikelihood(models["t5"], PAIRS, separated=False)
    gpt = models["gpt"]
    for pairs, message in [
        ([("a", "")], "at least one token of its own"),
        ([], "at least one pair. Received: none"),
        (["ab"], "two strings each. Received: 'ab'"),
        ([("a", 1)], "two strings each"),
    ]:
        with pytest.raises(InputError, match=message):
            evaluation.loglikelihood(gpt, pairs)
    with pytest.raises(InputError, match="a model with its tokenizer"):
        evaluation.loglikelihood(gpt.backbone, PAIRS)


# Ranked choices ---------------------------------------------------------------------------------


def test_norms_of_choices_by_hand():
    given = evaluation.examples(
        [{"question": "", "choices": ["ab", "éé", "abcdef"], "answer": i} for i in range(3)]
    )
    log_p, alone = np.array([-2.0, -2.5, -4.0]), np.array([-1.0, -2.4, -2.0])
    ranked = kzoo.evaluation.base.Ranked(given, [log_p] * 3, 0)
    stub = types.SimpleNamespace(
        ranked=ranked, unconditional=ranked._replace(loglikelihoods=[alone] * 3)
    )
    best = {
        "acc": 0,  # -2, -2.5, -4
        "acc_norm": 2,  # by 2, 2 and 6 characters: -1, -1.25, -0.667
        "acc_bytes": 1,  # by 2, 4 and 6 bytes: -1, -0.625, -0.667
        "acc_mutual_info": 1,  # -1, -0.1, -2
    }
    assert set(best) == {n for n in METRICS.names if issubclass(METRICS[n], ChoiceMetric)}
    for name, choice in best.items():
        right = METRICS.get(name).values(stub)
        assert right.tolist() == [float(i == choice) for i in range(3)], name


@pytest.mark.parametrize("family", ["gpt", "t5"])
def test_choices_are_ranked_by_log_p_of_their_prompts(models, family):
    model = models[family]
    found = kzoo.evaluate_choices(model, QUESTIONS, num_fewshot=2, fewshot=SHOTS, batch_size=BATCH)
    shots = "0 + 0 = 0\n\n1 + 1 = 2\n\n"
    delimiter = " " if family == "gpt" else ""
    right = []
    for question, log_p in zip(QUESTIONS, found["loglikelihoods"], strict=True):
        pairs = [(shots + question["question"], delimiter + c) for c in question["choices"]]
        expected = np.array([p for p, _ in by_hand(model, pairs)])
        np.testing.assert_allclose(log_p, expected, rtol=1e-5)
        gold = question["answer"]
        gold = gold if isinstance(gold, int) else question["choices"].index(gold)
        right.append(expected.argmax() == gold)
    assert found["acc"] == np.mean(right) and found["examples"] == 3 and found["cut"] == 0
    assert found["acc_stderr"] == pytest.approx(np.std(right, ddof=1) / math.sqrt(3))


def test_shots_are_others_and_the_same_for_every_model():
    given = evaluation.examples([(f"{i}?", f"{i}!") for i in range(20)])
    prompts = evaluation.Prompts(num_fewshot=3)
    contexts = [prompts.context(given, i) for i in range(20)]
    for i, context in enumerate(contexts):
        *shots, question = context.split("\n\n")
        numbers = [int(re.fullmatch(r"(\d+)\? \1!", shot)[1]) for shot in shots]
        assert question == f"{i}?" and i not in numbers and len(numbers) == 3
        assert numbers == sorted(numbers)
    assert contexts == [evaluation.Prompts(num_fewshot=3).context(given, i) for i in range(20)]
    assert len({context.rpartition("\n\n")[0] for context in contexts}) > 10
    other = evaluation.Prompts(num_fewshot=3, seed=1)
    assert contexts != [other.context(given, i) for i in range(20)]
    with pytest.raises(InputError, match="num_fewshot=20, and 19 to show"):
        evaluation.Prompts(num_fewshot=20).context(given, 0)


def test_labels_are_ranked(gpt):
    texts = [("good film", "pos"), ("bad film", "neg"), ("fine", "pos")]
    found = kzoo.evaluate_choices(gpt, texts, metrics=["acc"], batch_size=BATCH)
    pairs = [(text, f" {label}") for text, _ in texts for label in ("neg", "pos")]
    log_p = evaluation.loglikelihood(gpt, pairs, batch_size=BATCH)["loglikelihood"].reshape(3, 2)
    assert np.allclose(found["loglikelihoods"], log_p)
    assert found["acc"] == np.mean(log_p.argmax(1) == [1, 0, 1])
    with pytest.raises(InputError, match="from 2 to 100 different ones"):
        labelled(evaluation.examples([("a", "b")]))
    with pytest.raises(InputError, match="metrics of ranked choices are acc, acc_norm"):
        kzoo.evaluate_choices(gpt, texts, metrics=["chrf"])


def test_a_classifiers_labels_are_its_choices():
    labels = ["neg", "pos", "so-so"]
    model = small("bert", objective={"classification": {"labels": labels}})
    texts = [("good film", "pos"), ("bad film", "neg"), ("fine", "pos"), ("meh", "neg")]
    found = kzoo.evaluate_choices(model, texts, metrics=["acc"], batch_size=BATCH)
    told = model.classify([text for text, _ in texts], batch_size=BATCH)
    assert found["acc"] == np.mean([a == b for a, (_, b) in zip(told, texts, strict=True)])
    assert np.allclose(np.exp(found["loglikelihoods"]).sum(-1), 1)
    assert [labels[i] for i in np.argmax(found["loglikelihoods"], -1)] == told
    for asked, message in [
        ({"metrics": ["acc_norm"]}, "acc is the metric of its choices"),
        ({"metrics": ["acc"], "num_fewshot": 1}, "a classifier reads one text"),
    ]:
        with pytest.raises(InputError, match=message):
            kzoo.evaluate_choices(model, texts, batch_size=BATCH, **asked)


BAD = [
    ([], "at least one example. Received: none"),
    ("a", "examples are a list. Received: 'a'"),
    ([("a", "")], r"an answer is not empty. Received: '' \(example 0\)"),
    ([3], "has the fields question, choices, answer. Received: 3"),
    ([{"question": "a", "choices": ["b", "c"]}], "answer is missing. Received: question, choices"),
    ([{"question": 1, "choices": ["b", "c"], "answer": 0}], "a question is a string"),
    ([{"question": "a", "choices": ["b"], "answer": 0}], "a list of two strings or more"),
    ([{"question": "a", "choices": ["b", ""], "answer": 0}], "none of them empty"),
    ([{"question": "a", "choices": ["b", "b"], "answer": 0}], "choices are all different"),
    ([{"question": "a", "choices": ["b", "c"], "answer": 2}], "from 0 to 1, or its text"),
    ([{"question": "a", "choices": ["b", "c"], "answer": True}], "from 0 to 1, or its text"),
    ([{"question": "a", "choices": ["bc", "d"], "answer": "bb"}], "did you mean 'bc'"),
]


@pytest.mark.parametrize("given, message", BAD, ids=[message for _, message in BAD])
def test_bad_examples(given, message):
    with pytest.raises(InputError, match=message):
        evaluation.examples(given)


def test_files_of_questions(tmp_path):
    lines, whole = tmp_path / "q.jsonl", tmp_path / "q.json"
    lines.write_text("\n".join(map(json.dumps, QUESTIONS)) + "\n\n")
    whole.write_text(json.dumps(QUESTIONS, indent=1), encoding="utf-8-sig")
    assert evaluation.read(lines) == evaluation.read(whole) == evaluation.examples(QUESTIONS)
    for content, message in [
        (b"", "there is no question in it"),
        (b'{"question": "a"}', "choices is missing.*line 1"),
        (b"\n{", "one JSON object.*line 2"),
        (b"\xff\xfe", "UTF-8. Received: .*invalid at byte 0"),
        (b'{"question": NaN}', "one JSON object.*line 1"),
    ]:
        lines.write_bytes(content)
        with pytest.raises(InputError, match=message):
            evaluation.read(lines)
    with pytest.raises(InputError, match="no file of that name"):
        evaluation.read(tmp_path / "none.jsonl")


# What is written --------------------------------------------------------------------------------


def test_answers_are_what_generate_writes(models):
    for name, model in models.items():
        prompts = ["to", "or", "x", "to be or"]
        found = evaluation.answers(model, prompts, max_tokens=6, batch_size=BATCH)
        for prompt, answer in zip(prompts, found, strict=True):
            own = 1 if name == "t5" else len(prompt) + (2 if name == "unilm" else 1)
            alone = model.generate(
                [prompt] * BATCH, max_length=own + 6, sampler="greedy", strip_prompt=True
            )
            assert answer == alone[0], (name, prompt)
    unilm = models["unilm"]
    assert evaluation.answers(unilm, ["to", "or"], max_tokens=6, batch_size=BATCH) == ["be", "not"]
    cut = evaluation.answers(unilm, ["or"], max_tokens=6, until=("t", "o"), batch_size=BATCH)
    assert cut == ["n"]
    for tokens in (0, 32, 1.5):
        with pytest.raises(InputError, match="at least 1 token and fewer than a sequence, 32"):
            evaluation.answers(unilm, ["or"], max_tokens=tokens)


def test_a_written_answer_is_greedy_and_an_exact_match(models):
    """Three ways to one number: generation, log p, and Keras's metric in `evaluate`."""
    unilm = models["unilm"]
    pairs = [("to", "be"), ("or", "not"), ("x", "yes"), ("to", "not")]
    found = Evaluation(unilm, pairs, batch_size=BATCH)
    assert evaluate(found, ["exact_match"])["exact_match"] == 0.75
    assert found.scored["is_greedy"].tolist() == [True, True, True, False]
    numbers = unilm.evaluate(pairs, batch_size=BATCH, verbose=0, return_dict=True)
    assert numbers["exact_match"] == 0.75


def test_metrics_of_scored_answers(models):
    pairs = [("to", "be"), ("or", "é"), ("x", "yes"), ("to", "not")]
    for model in (models["unilm"], models["t5"]):
        found = evaluate(Evaluation(model, pairs, batch_size=BATCH), ["bits_per_byte", "accuracy"])
        score = model.score(pairs, batch_size=BATCH, end_token=False)
        bits = score["nats"].sum() / (math.log(2) * score["bytes"].sum())
        assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
        assert 0 <= found["accuracy"] <= 1 and "accuracy_stderr" not in found


def test_white_space_that_is_scored_counts_among_the_bytes(gpt):
    """That of a context's end counts as the continuation's."""
    found = evaluation.loglikelihood(gpt, [("to \n", "bé"), ("to", " be")], batch_size=BATCH)
    assert found["bytes"].tolist() == found["tokens"].tolist() == [5, 3]
    scored = Evaluation(gpt, [("to \n", "be")], batch_size=BATCH)
    nats = -scored.scored["loglikelihood"][0]
    bits = evaluate(scored, ["bits_per_byte"])["bits_per_byte"]
    assert bits == pytest.approx(nats / (5 * math.log(2)))  # two signs, the delimiter, two letters


TEXTS = [
    ("The whale, a fish.", "the whale is a fish"),
    ("call me Ishmael", "Call me Ishmael."),
    ("", "the"),
    ("no", ""),
    ("whale whale", "whale"),
    ("Das ist ein Haus.", "Dies ist ein Haus."),
]


def test_exact_match_and_f1_are_squads():
    """Rajpurkar et al. 2016's script, worked by hand: without case, punctuation and articles."""
    predictions, references = zip(*TEXTS, strict=True)
    squad = METRICS.get({"exact_match": {"normalize": "squad"}}).compare(predictions, references)
    assert squad.tolist() == [0, 1, 1, 0, 0, 0]
    f1 = METRICS.get("token_f1").compare(predictions, references)
    # whale fish of whale is fish; ...; one of two whales; three words of four
    np.testing.assert_allclose(f1, [0.8, 1, 1, 0, 2 / 3, 0.75])
    assert METRICS.get("exact_match").compare(["a", "b"], ["a", "b "]).tolist() == [1, 0]
    with pytest.raises(InputError, match="did you mean 'squad'"):
        METRICS.get({"exact_match": {"normalize": "squad1"}})


def test_texts_are_compared_as_the_peers_do():
    from rouge_score import rouge_scorer
    from sacrebleu.metrics import BLEU, CHRF

    predictions, references = map(list, zip(*TEXTS, strict=True))
    ours = {name: METRICS.get(name).compare(predictions, references) for name in ("bleu", "chrf")}
    assert ours["bleu"] == BLEU().corpus_score(predictions, [references]).score > 0
    assert ours["chrf"] == CHRF().corpus_score(predictions, [references]).score > 0
    plus = METRICS.get({"chrf": {"word_order": 2}}).compare(predictions, references)
    assert plus == CHRF(word_order=2).corpus_score(predictions, [references]).score
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    rouge = METRICS.get("rouge_l").compare(predictions, references)
    assert rouge.tolist() == [scorer.score(b, a)["rougeL"].fmeasure for a, b in TEXTS]


def test_a_metric_of_ones_own_and_bad_ones(models):
    @METRICS.register
    class Length(evaluation.TextMetric):
        """How long answers are."""

        name = "length_of_answers"

        def compare(self, predictions, references):
            return np.array([float(len(text)) for text in predictions])

    try:
        found = Evaluation(models["unilm"], [("to", "be"), ("x", "yes")], batch_size=BATCH)
        assert evaluate(found, ["length_of_answers"])["length_of_answers"] == 2.5
    finally:
        METRICS._classes.pop("length_of_answers")
    with pytest.raises(InputError, match="unknown metric; did you mean 'bleu'"):
        evaluate(found, ["blue"])
    with pytest.raises(InputError, match="asked for once. Received: acc twice"):
        evaluate(Evaluation(models["gpt"], QUESTIONS, batch_size=BATCH), ["acc", "acc"])


@pytest.mark.backends
def test_keras_metric_by_hand():
    rng = np.random.default_rng(0)
    metric, whole = evaluation.ExactMatch(), []
    for _ in range(3):
        y, logits = rng.integers(0, 3, (5, 4)), rng.normal(size=(5, 4, 3)).astype("float32")
        weight = rng.integers(0, 2, (5, 4)) * rng.random((5, 4))
        weight[0] = 0
        metric.update_state(y, logits, weight.astype("float32"))
        for i in range(1, 5):
            scored = [t for t in range(4) if weight[i, t] > 0]
            if scored:
                whole.append(all(logits[i, t].argmax() == y[i, t] for t in scored))
    assert float(metric.result()) == pytest.approx(np.mean(whole)) and any(whole)
    metric.reset_state()
    assert float(metric.result()) == 0


# Probes -----------------------------------------------------------------------------------------


def test_probes_are_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    gold = rng.integers(0, 3, 60)
    states = rng.normal(size=(60, 5)) + 2 * np.eye(5)[gold]
    weights = fit(states, gold, 3, penalty=0.5)
    peer = LogisticRegression(C=2.0, tol=1e-8, max_iter=1000).fit(states, gold)
    ours = np.c_[states, np.ones(60)] @ weights
    theirs = peer.decision_function(states)
    centred = [logits - logits.mean(-1, keepdims=True) for logits in (ours, theirs)]
    np.testing.assert_allclose(*centred, atol=2e-3)
    held_out = held_out_predictions(states, gold, 1.0)
    assert 0.7 < (held_out == gold).mean() < 1
    noise = held_out_predictions(rng.normal(size=(60, 20)), gold, 1e-6)
    assert (noise == gold).mean() < 0.6, "what is scored was not trained on"
    with pytest.raises(InputError, match="two examples or more of each"):
        held_out_predictions(states[:3], np.array([0, 0, 1]), 1.0)


@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_hidden_states_are_means_over_a_text(models, family):
    model = models.get(family) or small(family)
    texts = ["to be", "or not to be, that is"]
    found = evaluation.hidden_states(model, texts, layer=0, batch_size=2)
    table = np.asarray(model.backbone.token_embedding.embeddings, "float64")
    expected = [table[[BOS, *text.encode()]].mean(0) for text in texts]
    scale = np.linalg.norm(found) / np.linalg.norm(expected)  # some embeddings are scaled
    np.testing.assert_allclose(found, scale * np.array(expected), atol=1e-5)
    assert (
        found == evaluation.hidden_states(model, texts[::-1], layer=0, batch_size=2)[::-1]
    ).all()
    with pytest.raises(InputError, match="layer is from 0, the embedding, to 1"):
        evaluation.hidden_states(model, texts, layer=2, batch_size=2)
    labels = [(f"{'ab'[i % 2] * (3 + i)}", "ab"[i % 2]) for i in range(8)]
    probe = Evaluation(model, labels, batch_size=2)
    assert evaluate(probe, [LinearProbe(layer=0)])["linear_probe"] == 1


# The tables of the guide ------------------------------------------------------------------------


def test_the_guide_names_every_metric():
    from guides import GUIDES

    text = (GUIDES / "evaluation.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert rows == list(METRICS.names)
