"""A question that models of every objective can be asked, for the study beside it."""

import numpy as np

import kzoo
from kzoo.studies.metrics import METRICS, Metric

DATA, VALID = "pydoc", 0.03  # as of the study, whose held-out text is asked about
LENGTH, ANSWER, CHOICES, QUESTIONS = 64, 20, 4, 200  # bytes, bytes, and how many


def questions(count=QUESTIONS):
    """Pieces of held-out text without their ends: each end, among the ends of other pieces.

    Returns:
        A list for `kzoo.evaluate_choices`.
    """
    config = kzoo.presets.config("gpt_nano", max_sequence_length=LENGTH)
    pieces = []
    for x, _, _ in kzoo.data.load(DATA, config, batch_size=16, valid=VALID).valid:
        for ids in x["token_ids"]:
            pieces.append(bytes(ids[ids < 256].astype("uint8")).decode(errors="ignore"))
    cut = []
    for piece in pieces:
        context, space, end = piece[: LENGTH - ANSWER].rpartition(" ")
        answer = (end + piece[LENGTH - ANSWER :]).strip()
        if context.strip() and space and len(answer) >= ANSWER // 2:
            cut.append((context.strip(), answer[:ANSWER]))
    draw = np.random.default_rng(0)
    found = []
    for number, (context, answer) in enumerate(cut[:count]):
        others = {end for i, (_, end) in enumerate(cut) if i != number} - {answer}
        choices = [answer, *draw.choice(sorted(others), CHOICES - 1, replace=False).tolist()]
        order = draw.permutation(CHOICES)
        choices = [choices[i] for i in order]
        found.append({"question": context, "choices": choices, "answer": choices.index(answer)})
    return found


@METRICS.register
class RightContinuation(Metric):
    """How often a model finds the end of a held-out piece of text likelier, by byte, than the ends
    of three others: 0.25 by guessing."""

    name = "right_continuation"
    of_predictions = False  # what was predicted in training is another matter
    measured = True

    def measure(self, model, valid):
        asked = kzoo.evaluate_choices(model, questions(), metrics=["acc_bytes"])
        return float(asked["acc_bytes"])
