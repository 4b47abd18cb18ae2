"""What `count_flops` and a study's amounts say, against XLA's own count of compiled steps."""

import jax
import pytest

from kzoo import presets
from kzoo.data import load
from kzoo.errors import InputError
from kzoo.studies import amounts
from kzoo.studies.folder import check_steps
from kzoo.studies.study import Study
from kzoo.training.flops import count_flops

# Wide, so that what no product does, such as norms, is a small part.
SIZES = {"hidden_dim": 256, "intermediate_dim": 1024, "num_layers": 1}
TASK = "synthetic:copy_varying,least=4,most=24,count=40"


def compiled(model, batch):
    """XLA's count for the loss of a batch and its gradient."""
    x, y, weight = batch
    state = (
        [v.value for v in model.trainable_variables],
        [v.value for v in model.non_trainable_variables],
    )

    def loss(trainable, fixed):
        logits, _ = model.stateless_call(trainable, fixed, x, training=True)
        nats = -jax.nn.log_softmax(logits)[
            jax.numpy.arange(len(y))[:, None], jax.numpy.arange(y.shape[1]), y
        ]
        return (nats * weight).sum()

    step = jax.jit(jax.value_and_grad(loss)).lower(*state).compile()
    return step.cost_analysis()["flops"]


def study(preset, data=TASK, **fields):
    arms = {"a": {"preset": preset, "overrides": {**SIZES, "objective": "prefix_lm"}}}
    given = {"arms": arms, "data": [data], "seeds": 1, "steps": 4, "batch_size": 4, **fields}
    return Study.from_dict(given)


def counted(asked, steps):
    return amounts.flops(asked, asked.data[0], asked.arms["a"], steps)


@pytest.mark.parametrize("preset", ["gpt_nano", "unilm_nano", "t5_nano"])
def test_rows_of_pairs_count_what_xla_computes(preset):
    model = presets.load(preset, **SIZES, objective="prefix_lm")
    batch = load(TASK, model, batch_size=4).train[0]
    found = counted(study(preset), 1)
    assert found == pytest.approx(compiled(model, batch), rel=0.04)
    assert found < 0.9 * 3 * 4 * sum(count_flops(model.config).values())  # of whole rows


def test_each_batch_counts_by_its_own_shape(tmp_path):
    buckets, packed, padded = (
        study("t5_nano", packing=packing) for packing in ("buckets", "first_fit", None)
    )
    train = amounts.load_splits(buckets, TASK, buckets.arms["a"]).train
    shapes = [
        tuple(batch[0][f"{stack}_token_ids"].shape[1] for stack in ("encoder", "decoder"))
        for batch in train
    ]
    config = buckets.arms["a"].config(0)
    each = [12 * sum(count_flops(config, *shape).values()) for shape in shapes]
    assert len({*shapes}) > 1 and counted(buckets, len(each)) == sum(each)
    assert counted(buckets, 2 * len(each) + 1) == 2 * sum(each) + each[0]
    assert counted(buckets, 8) < counted(padded, 8) < counted(packed, 8)
    # Of running text an encoder and a decoder share a window.
    text = tmp_path / "text.txt"
    text.write_text("Call me Ishmael. Some years ago, never mind how long.\n" * 99)
    running = study("t5_nano", str(text))
    assert counted(running, 1) < 12 * sum(count_flops(config).values())


def test_a_begun_study_keeps_the_steps_of_its_budget():
    asked = study("gpt_nano", budget="flops")
    settled = amounts.with_steps(asked, asked)
    run = {"run": f"{TASK}/a/0", "arm": "a", "data": TASK}
    check_steps(settled, [run, {**run, "training": {"steps": 4}}])
    with pytest.raises(InputError, match="Received: 4 steps, and 7 in the finished run"):
        check_steps(settled, [{**run, "training": {"steps": 7}}])
