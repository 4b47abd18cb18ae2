import grain
import keras
import numpy as np
import pytest

from kzoo import presets
from kzoo.models import multi_step

SMALL = {
    "num_layers": 1,
    "hidden_dim": 16,
    "num_heads": 2,
    "intermediate_dim": 32,
    "max_sequence_length": 16,
}
ROWS = 27  # of batches of 4: the last one is smaller


def batches(rows=ROWS):
    rng = np.random.default_rng(0)
    ids = rng.integers(256, size=(rows, 17)).astype("int32")
    x = {"token_ids": ids[:, :-1], "padding_mask": np.ones((rows, 16), "int32")}
    return x, ids[:, 1:], rng.random((rows, 16)).astype("float32")


class Calls(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.batches, self.counts, self.losses = [], [], []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(batch)
        for logs, count in self.model.train_function.logs:
            self.counts.append(count)
            self.losses += np.ravel(logs["loss"])[:count].tolist()


def fitted(size, loss_tokens=0, accumulation=None):
    model = presets.load("gpt_nano", dropout=0.1, loss_tokens=loss_tokens, **SMALL)
    optimizer = keras.optimizers.AdamW(0.01, gradient_accumulation_steps=accumulation)
    model.compile(optimizer=optimizer, steps_per_execution=size)
    x, y, weight = batches()
    calls = Calls()
    fit = {"batch_size": 4, "epochs": 2, "verbose": 0, "callbacks": [calls]}
    history = model.fit(x, y, sample_weight=weight, validation_data=batches(9), **fit).history
    return model, history, calls


@pytest.fixture
def one_program(monkeypatch):
    """On a CPU too, where by default the same program is called for each step."""
    monkeypatch.setattr(multi_step, "platform", lambda: "tpu")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"loss_tokens": 32, "accumulation": 2}], ids=str)
def test_several_steps_in_a_call_train_as_single_steps(one_program, settings):
    expected, expected_history, single = fitted(1, **settings)
    model, history, calls = fitted(3, **settings)
    for name, values in expected_history.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(calls.losses, single.losses, rtol=1e-6)
    # Seven steps an epoch: neither more steps nor other batches where 3 do not divide them.
    assert calls.batches == [2, 5, 8] * 2 and sum(calls.counts) == len(single.losses) == 14
    assert int(model.optimizer.iterations) == int(expected.optimizer.iterations)
    for variable, other in zip(model.variables, expected.variables, strict=True):
        np.testing.assert_allclose(variable, other, atol=2e-5, err_msg=variable.path)


def test_an_epoch_has_its_steps_where_data_go_on():
    model = presets.load("gpt_nano", **SMALL)
    model.compile(steps_per_execution=3)
    endless = grain.MapDataset.source([batches(4)]).repeat().to_iter_dataset()
    model.fit(endless, steps_per_epoch=4, epochs=2, verbose=0)
    assert int(model.optimizer.iterations) == 8
    model.train_on_batch(*batches(4)[:2])
    assert int(model.optimizer.iterations) == 9


def test_one_program_whatever_the_number_of_steps(one_program):
    model = presets.load("gpt_nano", **SMALL)
    model.compile(steps_per_execution=4)
    for rows in (4, 12, 16, 24):
        x, y, weight = batches(rows)
        model.fit(x, y, sample_weight=weight, batch_size=4, verbose=0)
    assert model.train_function.program._cache_size() == 1
    x, y, weight = batches(6)  # a batch of 4, and one of 2
    model.fit(x, y, sample_weight=weight, batch_size=4, verbose=0)
    assert [count for _, count in model.train_function.logs] == [1, 1]
    assert model.train_function.program._cache_size() == 2
