"""Generation: reading a prompt, one step after short and long prompts, a conversation."""

import time
from typing import NamedTuple

import numpy as np

from kzoo import presets
from kzoo.bench import measure
from kzoo.bench.measure import PAUSE, Ready, check_jax, machine, race, statistics
from kzoo.errors import InputError
from kzoo.models.conversation import Conversation, Session
from kzoo.models.generation import get_sampler
from kzoo.models.prompts import bucket

# The most that a linear step after a longer prompt may take, relative to the shortest one.
BAR = 1.1


class Sizes(NamedTuple):
    """The model's sizes; 4 layers of width 256 by default."""

    num_layers: int = 4
    hidden_dim: int = 256
    num_heads: int = 4


class Arm(NamedTuple):
    """A contestant: a family of presets, and a mechanism."""

    family: str
    mechanism: str


ARMS = {
    "softmax_causal": Arm("gpt", "softmax"),
    "softmax_prefix": Arm("unilm", "softmax"),
    "linear_causal": Arm("gpt", "linear"),
    "linear_prefix": Arm("unilm", "linear"),
    "gated_delta_causal": Arm("gpt", "gated_delta"),
    "softmax_encoder_decoder": Arm("t5", "softmax"),
    "linear_encoder_decoder": Arm("t5", "linear"),
}


def bench_generate(
    lengths=(256, 4096),
    *,
    steps=16,
    turns=4,
    turn_tokens=128,
    reply_tokens=16,
    repeats=5,
    sizes=Sizes(),  # noqa: B008 (a tuple)
    say=lambda text: None,
):
    """Time prefill, single decoding steps after prompts of `lengths`, and a conversation.

    One sequence, greedy, random weights, float32; each step is a call of its own, as in `stream`.
    The source is the whole prompt. In an encoder–decoder the encoder reads it, and the decoder's
    steps follow BOS.

    Args:
        lengths: tokens of the prompt, at least two lengths of 3 or more.
        steps: how many steps are timed together, for each length.
        turns: how many turns the conversation has.
        turn_tokens, reply_tokens: tokens of the text and of the reply in each turn.
        repeats: how often everything runs.
        sizes: a `Sizes`.
        say: called with lines about the progress.

    Returns:
        A dict of JSON values: `settings`, `machine`, `rows` and `turns`. `rows` has a dict for
        each contestant and length: `contestant`, `time`, `median_seconds`, `iqr_seconds` and
        `seconds` of one step, `tokens_per_second`, `prefill` (the same three of the prompt), and
        `ratio`, of the median to that at the shortest length. `turns` has a dict for each
        contestant and `turn`: `context` (tokens of its prompt), `reused` of them, and
        `median_seconds`, `iqr_seconds` and `seconds` to its first token. `bar` is the greatest
        ratio that contestants with a state of fixed size may have.

    Raises:
        InputError: for a number that is no positive integer, fewer than two lengths, or another
            backend than JAX.

    Example:
        >>> result = bench_generate((256, 1024), repeats=3)
        >>> {row["contestant"]: row["ratio"] for row in result["rows"] if row["time"] == 1024}
    """
    check_jax()
    lengths = measure.lengths("lengths", lengths)
    numbers = {"steps": steps, "turns": turns, "turn_tokens": turn_tokens}
    numbers |= {"reply_tokens": reply_tokens, "repeats": repeats}
    numbers, sizes = measure.counts(numbers), sizes._replace(**measure.counts(sizes._asdict()))
    steps, turns, turn_tokens, reply_tokens, repeats = numbers.values()
    if len(lengths) < 2 or lengths[0] < 3:
        raise InputError(f"lengths must be at least two, of 3 tokens or more. Received: {lengths}")
    about = machine()
    talk = bucket(turns * (turn_tokens + reply_tokens + 2))
    longest = max(bucket(lengths[-1] + steps), talk)
    models = {name: _model(arm, sizes, longest) for name, arm in ARMS.items()}
    prefill, step, greedy = {}, {}, get_sampler("greedy")
    for name, model in models.items():
        for length in lengths:
            session = Session(model, greedy, bucket(length + steps))
            prefill[f"{name}, {length}"] = _ready(_prefill, session, length)
            step[f"{name}, {length}"] = _ready(_steps, session, length, steps)
    prefill, step = (race(entries, repeats, say=say) for entries in (prefill, step))
    rows = []
    for name in ARMS:
        for length in lengths:
            own, first = (step[f"{name}, {n}"]["median_seconds"] for n in (length, lengths[0]))
            row = {
                "contestant": name,
                "time": length,
                **_each(step[f"{name}, {length}"], steps),
                "tokens_per_second": steps / own,
                "prefill": _each(prefill[f"{name}, {length}"], 1),
                "ratio": own / first,
            }
            rows.append(row)
    sessions = {name: Session(model, greedy, talk) for name, model in models.items()}
    settings = {"lengths": lengths, **numbers, **sizes._asdict(), "dtype": "float32"}
    return {
        "bench": "generate",
        "settings": settings,
        "machine": about,
        "bar": BAR,
        "rows": rows,
        "turns": _turns(sessions, turns, turn_tokens, reply_tokens, repeats, say),
    }


def _model(arm, sizes, longest):
    return presets.load(
        f"{arm.family}_nano",
        mechanism=arm.mechanism,
        max_sequence_length=longest,
        intermediate_dim=4 * sizes.hidden_dim,
        **sizes._asdict(),
    )


def _ready(prepare, *args):
    return lambda: Ready(prepare(*args))


def _prompt(model, length):
    """A source of `length` tokens, BOS and SEP among them."""
    x = model.preprocessor.encoder.prompts([_ids(length - 2)], as_source=True)
    (prompt,) = model._prompts(x, model.longest_sequence())
    return prompt


def _ids(count):
    return np.random.default_rng(0).integers(256, size=count)


def _prefill(session, length):
    """A function that reads a prompt and chooses the first token."""
    prompt = _prompt(session.model, length)

    def run():
        session.begin(prompt)
        return session.read(prompt.ids)

    return run


def _steps(session, length, count):
    """A function that runs `count` steps after a prompt.

    Every run starts after the prompt again: later columns of the cache are overwritten, and the
    values of a state do not change the time of a step.
    """
    begun = len(_prompt(session.model, length).ids)

    def run():
        session.length = begun
        for token in _ids(count):
            session.read([token])

    return run


def _each(result, count):
    """The timing of one of `count` steps that were timed together."""
    timing = {name: result[name] / count for name in ("median_seconds", "iqr_seconds")}
    return {**timing, "seconds": [seconds / count for seconds in result["seconds"]]}


def _turns(sessions, turns, said, replied, repeats, say):
    """Seconds to the first token of each turn of a conversation: a list of dicts."""
    text = "".join(chr(32 + i % 64) for i in _ids(said))
    rows = {}
    for i in range(repeats + 1):
        for name, session in sessions.items():
            say(f"{name}: conversation {i} of {repeats}")
            time.sleep(PAUSE)
            talk = Conversation(session, stops=())
            for turn in range(1, turns + 1):
                begin = time.perf_counter()
                reply = talk.tokens(text, max_length=replied)
                next(reply)
                seconds = time.perf_counter() - begin
                facts = {"context": talk.reused + talk.encoded, "reused": talk.reused}
                row = rows.setdefault((name, turn), {"contestant": name, "turn": turn, **facts})
                if i > 0:  # the first time compiles
                    row.setdefault("seconds", []).append(seconds)
                for _ in reply:
                    pass
    return [{**row, **statistics(row["seconds"])} for row in rows.values()]
