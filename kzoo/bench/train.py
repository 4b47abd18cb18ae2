"""A whole train step of a small GPT, in kzoo and in other libraries."""

import importlib.util
from typing import NamedTuple

import keras
import numpy as np

from kzoo import presets
from kzoo.bench.measure import Ready, Skip, check_jax, counts, machine, peer_torch, race, ratio

LEARNING_RATE, WEIGHT_DECAY = 3e-4, 0.01
LOSS_TOKENS = 1024  # of kzoo's: tokens whose logits exist at once, which changes no value


class Sizes(NamedTuple):
    """Sizes of the model and its batches; the feed-forward width is four times `hidden_dim`."""

    num_layers: int = 6
    hidden_dim: int = 256
    num_heads: int = 8
    vocabulary_size: int = 8192
    batch: int = 8
    time: int = 512


def bench_train(steps=5, sizes=None, *, say=lambda text: None):
    """Time whole train steps: forward, backward and AdamW, float32, no dropout, one fixed batch.

    Contestants: kzoo's GPT with softmax and with linear attention; keras-hub's GPT-2 on JAX; a
    GPT-2 in JAX alone; HF transformers' GPT-2 on torch, with its SDPA attention. The loss is the
    mean cross-entropy over all positions. All have learned positions and the gelu of GPT-2. They
    take turns, after one step each that is not counted. kzoo's have `loss_tokens=1024`.

    Args:
        steps: how often each contestant steps.
        sizes: a `Sizes`; by default 6 layers of width 256.
        say: called with lines about the progress.

    Returns:
        A dict of JSON values: `settings`, `machine` and `rows`, one for each contestant:
        `contestant`, `reason` (why it did not run, else None), `median_seconds`, `iqr_seconds`,
        `seconds`, `first_seconds`, `compile_seconds` (the first step less a median one;
        with a compilation cache of JAX, the time of reading from it), `tokens_per_second`,
        `parameters`, `first_loss`, and `ratio` to kzoo's time.

    Raises:
        InputError: for steps or sizes that are no positive integers or make no model, or another
            backend than JAX.

    Example:
        >>> [(row["contestant"], row["ratio"]["kzoo"]) for row in bench_train()["rows"]]
    """
    check_jax()
    sizes = sizes or Sizes()
    steps, sizes = counts({"steps": steps})["steps"], sizes._replace(**counts(sizes._asdict()))
    presets.config(
        "gpt_nano", **_overrides(sizes)
    )  # raises at once for sizes that no model can have
    about = machine()
    ids = np.random.default_rng(0).integers(
        sizes.vocabulary_size, size=(sizes.batch, sizes.time + 1)
    )
    tokens, targets = ids[:, :-1].astype("int32"), ids[:, 1:].astype("int32")
    entries = {
        name: lambda prepare=prepare: prepare(sizes, tokens, targets)
        for name, prepare in CONTESTANTS.items()
    }
    results = race(entries, steps, say=say)
    return {
        "bench": "train",
        "settings": {"steps": steps, "dtype": "float32", **sizes._asdict()},
        "machine": about,
        "rows": [_row(name, results, tokens.size) for name in CONTESTANTS],
    }


def _row(name, results, tokens):
    result = results[name]
    median = result["median_seconds"]
    return {
        "contestant": name,
        "parameters": None,
        "first_loss": None,
        **result,
        "compile_seconds": max(0.0, result["first_seconds"] - median) if median else None,
        "tokens_per_second": tokens / median if median else None,
        "ratio": {"kzoo": ratio(result, results["kzoo"])},
    }


# Contestants --------------------------------------------------------------------------------


def _overrides(sizes):
    return {
        "vocabulary_size": sizes.vocabulary_size,
        "num_layers": sizes.num_layers,
        "hidden_dim": sizes.hidden_dim,
        "num_heads": sizes.num_heads,
        "intermediate_dim": 4 * sizes.hidden_dim,
        "max_sequence_length": sizes.time,
        "dropout": 0.0,
    }


def _softmax(sizes, tokens, targets):
    return _ours("softmax", sizes, tokens, targets)


def _linear(sizes, tokens, targets):
    return _ours("linear", sizes, tokens, targets)


def _ours(mechanism, sizes, tokens, targets):
    # GPT-2's choices, so that all contestants compute the same.
    same = {"positions": "learned", "activation": "gelu_tanh", "loss_tokens": LOSS_TOKENS}
    model = presets.load("gpt_nano", mechanism=mechanism, **same, **_overrides(sizes))
    return _keras(model, tokens, targets)


def _keras_hub(sizes, tokens, targets):
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(**_overrides(sizes))
    return _keras(keras_hub.models.GPT2CausalLM(backbone), tokens, targets)


def _keras(model, tokens, targets):
    from kzoo.models.loss import token_loss

    optimizer = keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    model.compile(optimizer=optimizer, loss=token_loss(), weighted_metrics=[])
    # Many small programs, which the next contestant finds compiled: they are nobody's step.
    optimizer.build(model.trainable_variables)
    inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}

    def step():
        return float(model.train_on_batch(inputs, targets, return_dict=True)["loss"])

    return _ready(step, model.count_params())


def _plain_jax(sizes, tokens, targets):
    import jax

    from kzoo.bench.plain import plain_step

    state, compiled = plain_step(sizes, LEARNING_RATE, WEIGHT_DECAY)
    parameters = sum(x.size for x in jax.tree.leaves(state[0]))

    def step():
        nonlocal state
        state, loss = compiled(state, tokens, targets)
        jax.block_until_ready(state)
        return float(loss)

    return _ready(step, parameters)


def _transformers(sizes, tokens, targets):
    torch = peer_torch()
    if importlib.util.find_spec("transformers") is None:
        raise Skip("transformers is not installed")
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=sizes.vocabulary_size,
        n_positions=sizes.time,
        n_embd=sizes.hidden_dim,
        n_layer=sizes.num_layers,
        n_head=sizes.num_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=1e-7
    )
    tokens, targets = (torch.from_numpy(x).long() for x in (tokens, targets))

    def step():
        optimizer.zero_grad()
        logits = model(tokens).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return _ready(step, sum(x.numel() for x in model.parameters()))


def _ready(step, parameters):
    """A `Ready` that records the loss of its first step, that of the initial weights."""
    facts = {"parameters": int(parameters)}

    def run():
        loss = step()
        facts.setdefault("first_loss", loss)

    return Ready(run, facts)


CONTESTANTS = {
    "kzoo": _softmax,
    "kzoo_linear": _linear,
    "keras_hub_gpt2": _keras_hub,
    "plain_jax": _plain_jax,
    "transformers_gpt2": _transformers,
}
