"""Programs compiled for a v5e that is not there: few, with many assertions, as each takes long."""

import importlib.util
import json
import math

import keras
import pytest
from test_ops import ORDERS

from kzoo import cli, presets
from kzoo.errors import InputError

if keras.backend.backend() != "jax":
    pytest.skip("JAX compiles for TPUs", allow_module_level=True)
if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed", allow_module_level=True)

import jax

from kzoo.ops import (
    delta_attention,
    gated_linear_attention,
    linear_attention,
    softmax_attention,
)
from kzoo.ops.context import compiling_for
from kzoo.training import compile_only as module
from kzoo.training import hlo
from kzoo.training.compile_only import compile_only, target
from kzoo.training.flops import count_flops
from kzoo.training.roofline import program_work

ONE_LAYER = {"num_layers": 1, "max_sequence_length": 128}


@pytest.fixture
def texts(monkeypatch):
    """The text of each program that is reported on."""
    seen, original = [], hlo.collectives

    def collectives(text):
        seen.append(text)
        return original(text)

    monkeypatch.setattr(hlo, "collectives", collectives)
    return seen


def gradients(attention, times, **sizes):
    """A program for four chips: the gradients of an attention of all orders at some lengths."""
    mesh = target.mesh_of("v5e:2x2", sizes)

    def array(dtype, *sizes):
        axes = ("data", None, "model" if "model" in mesh.shape else None)[: len(sizes)]
        spec = jax.sharding.PartitionSpec(*axes)
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=jax.sharding.NamedSharding(mesh, spec))

    def loss(operands, rows):
        out = [
            attention(*qkv, ORDERS, padding_mask=padding, source_mask=source)
            for qkv, (padding, source) in zip(operands, rows, strict=True)
        ]
        return sum(x.sum() for x in out)

    operands = [[array("float32", 4, time, 12, 16)] * 3 for time in times]
    rows = [[array("int32", 4, time)] * 2 for time in times]
    with compiling_for("tpu", mesh):
        return jax.jit(jax.grad(loss)).lower(operands, rows).compile()


@pytest.mark.slow
def test_splash_computes_every_order_at_every_length():
    lengths = (200, 512)  # blocks that are full and not, one and several
    with module._optimization("O0"):
        program = gradients(softmax_attention, lengths, data=2, model=2)
    calls = hlo.kernels(program.as_text())
    # The orders that fit into one kernel, and the three that each need their own.
    for part in ("fwd", "dq", "dkv"):
        assert sum(f"splash_mha_{part}" in call for call in calls) == 4 * len(lengths)
    assert len(calls) == 3 * 4 * len(lengths)
    assert not hlo.collectives(program.as_text())
    for time in lengths:  # nor are the scores of all heads anywhere
        assert f"12,{time},{time}]" not in program.as_text()


@pytest.mark.slow
def test_linear_attention_of_every_order_takes_memory_linear_in_time():
    sizes = {}
    for time in (1024, 4096):
        with module._optimization("O0"):
            program = gradients(linear_attention, (time,), data=4)
        # Two kernels of causal and reversed heads each, four of those whose queries see both sides.
        assert len(hlo.kernels(program.as_text())) == 2 * 2 + 3 * 4 + 2
        assert not hlo.collectives(program.as_text())
        sizes[time] = program.memory_analysis().temp_size_in_bytes
    assert sizes[4096] < 4.2 * sizes[1024]


def kernels_of(report):
    """The kernels of a train step, without what each attention takes alone."""
    attention = report["programs"]["train_step"]["attention"]
    return {path: {k: x for k, x in one.items() if k != "alone"} for path, one in attention.items()}


def assert_only_gradients_are_exchanged(report, text, parameters):
    program = report["programs"]["train_step"]
    assert set(program["collectives"]) == {"all-reduce"}
    found = hlo.collectives(text)
    assert all(one["group"] == report["chips"] for one in found)
    shapes = [shape for one in found for shape in one["shapes"]]
    scalars = [shape for shape in shapes if not shape]
    # Each gradient once; under mixed_bfloat16 those of projections travel in two bytes.
    assert sum(map(math.prod, shapes)) == parameters + len(scalars)
    assert len(scalars) <= 4


@pytest.mark.slow
def test_data_parallel_softmax_exchanges_nothing_but_gradients(texts):
    # Tied, the embedding would get its gradient in two parts.
    fields = {**ONE_LAYER, "tie_embeddings": False}
    report = compile_only("gpt_nano", "v5e:2x4", 16, dtype="mixed_bfloat16", **fields)
    assert_only_gradients_are_exchanged(report, texts[0], report["parameters"])
    program = report["programs"]["train_step"]
    assert program["fits"]
    (attention,) = program["attention"].values()
    alone = attention.pop("alone")
    assert program["attention"] == {"block_0/attention": {"kernel": "splash", "calls": 3}}
    # Two examples a chip of 128 tokens and 64 numbers; masks of four bytes.
    assert alone["least_bytes"] == 11 * (2 * 128 * 64 * 2) + 2 * (2 * 128 * 4)
    assert alone["fits"] and alone["bytes"] > alone["least_bytes"]
    # Nine products of one whole tile, and each output by its slope.
    assert alone["flops"] == (9 * 128 + 1) * 2 * (2 * 4 * 128 * 16)
    assert alone["roofline_seconds"] < program["roofline_seconds"]
    assert alone["bytes"] < program["bytes"]
    memory = program["memory"]
    state = 4 * 3 * report["parameters"]  # the parameters and AdamW's two moments, each whole
    assert state <= memory["donated"] <= memory["outputs"] <= memory["arguments"] < 1.25 * state
    parts = ("arguments", "outputs", "temporaries", "code")
    assert memory["total"] == sum(memory[part] for part in parts) - memory["donated"]
    flops = program["flops"]
    needed = count_flops(presets.config("gpt_nano", **fields))
    assert flops["needed"] == 3 * 16 * (needed["matmul"] + needed["attention"])
    # The products outside of the kernel, and those of the kernel, once.
    matmul = 3 * 16 * needed["matmul"] / 8
    assert 0.9 < (flops["compiled"] - alone["flops"]) / matmul < 1.1


@pytest.mark.slow
def test_data_parallel_linear_exchanges_nothing_but_gradients(texts):
    fields = {**ONE_LAYER, "tie_embeddings": False, "mechanism": "linear"}
    report = compile_only("unilm_nano", "v5e:2x2", 8, **fields)
    assert_only_gradients_are_exchanged(report, texts[0], report["parameters"])
    attention = kernels_of(report)
    assert attention == {"block_0/attention": {"kernel": "pallas", "calls": 4}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mechanism", "attention"),
    [
        ("bert_mixed_heads_nano", "softmax", {"kernel": "splash", "calls": 3}),
        ("gpt_nano", "gated_linear", {"kernel": "pallas", "calls": 2}),
    ],
)
def test_data_and_model_parallel(texts, name, mechanism, attention):
    mesh, fields = {"data": 2, "model": 2}, {**ONE_LAYER, "mechanism": mechanism}
    report = compile_only(name, "v5e:2x2", 8, mesh=mesh, **fields)
    program = report["programs"]["train_step"]
    assert report["mesh"] == mesh
    assert kernels_of(report) == {"block_0/attention": attention}
    # Projections and their moments are halved.
    assert program["memory"]["arguments"] < 0.8 * 4 * 3 * report["parameters"]
    assert {one["group"] for one in hlo.collectives(texts[0])} <= {2, 4}


@pytest.mark.slow
def test_an_encoder_and_a_decoder_exchange_nothing_but_gradients(texts):
    fields = {**ONE_LAYER, "tie_embeddings": False}
    report = compile_only("t5_mixed_encoder_nano", "v5e:2x2", 8, **fields)
    assert_only_gradients_are_exchanged(report, texts[0], report["parameters"])
    found = kernels_of(report)
    layers = ("encoder_block_0/attention", "decoder_block_0/attention")
    assert found == dict.fromkeys(
        [*layers, "decoder_block_0/cross_attention"], {"kernel": "splash", "calls": 3}
    )


def test_decoding(texts):
    report = compile_only("gpt_nano", "v5e:2x2", 8, decode=True, **ONE_LAYER)
    prefill, token = report["programs"]["prefill"], report["programs"]["token"]
    assert prefill["fits"] and token["fits"]
    cache = 2 * 8 // 4 * 128 * 64 * 4  # keys and values, of the examples of a chip
    assert cache <= prefill["memory"]["outputs"]
    assert cache <= token["memory"]["donated"]  # written in place
    assert token["flops"]["needed"] == prefill["flops"]["needed"] // 128
    assert not token["collectives"] and not prefill["collectives"]
    # A prompt from its first token on is a whole sequence; a token looks back at a cache.
    assert prefill["attention"] == {"block_0/attention": {"kernel": "splash", "calls": 1}}
    assert token["attention"] == {"block_0/attention": {"kernel": "dense", "calls": 0}}


def test_what_does_not_fit_says_by_how_much_and_what_would(capsys):
    command = "compile gpt_nano --topology v5e:1x1 --batch 1000000 --set num_layers=1".split()
    assert cli.main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    program = report["programs"]["train_step"]
    memory = program["memory"]
    assert not program["fits"]
    assert program["over"] == memory["total"] - memory["available"] > 0
    assert memory["available"] <= memory["chip"] == 16 * 2**30
    said = " ".join(program["suggestions"])
    for word in ("a batch of", "--accumulate", "mixed_bfloat16", "loss_tokens"):
        assert word in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("gpt_nan --topology v5e:2x4 --batch 8", "did you mean 'gpt_nano'"),
        ("gpt_nano --topology v5e:2x3 --batch 8", "did you mean 'v5e:2x"),
        ("gpt_nano --topology v9:2x2 --batch 8", "unknown topology"),
        ("gpt_nano --topology v5e:2x4 --batch 12", "into 8 along the mesh axis 'data'"),
        ("gpt_nano --topology v5e:2x4 --batch 8 --mesh data=3", "number of chips, 8"),
        ("gpt_nano --topology v5e:2x4 --batch 8 --mesh rows=8", "unknown mesh axis"),
        ("gpt_nano --topology v5e:2x4 --batch 8 --mesh data", "data=N,model=M"),
        ("gpt_nano --topology v5e:2x4 --batch 8 --mesh model=8", "num_heads must be a multiple"),
        ("bert_mixed_heads_nano --topology v5e:2x4 --batch 8 --mesh model=4", "pattern of heads"),
        ("gpt_nano --topology v5e:2x4 --batch 8 --dtype float17", "unknown dtype"),
        ("bert_nano --topology v5e:2x4 --batch 8 --decode", "generates no text"),
        ("gpt_nano --topology v5e:2x4 --batch 8 --backend torch", "JAX"),
    ],
)
def test_errors_are_one_line(arguments, said, capsys, monkeypatch):
    if "torch" in arguments:
        monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert cli.main(["compile", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert said in error and "Received" in error and error.count("\n") == 1


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'kzoo\[tpu\]'"):
        compile_only("gpt_nano", "v5e:2x4", 8)


HLO = """
HloModule jit_step

%all-reduce-scatter.1 (a: f32[8,4]) -> f32[2,4] {
  %all-reduce.9 = f32[8,4]{1,0} all-reduce(%a), replica_groups={{0,1,2,3}}, to_apply=%add
}

ENTRY %main {
  %all-reduce.1 = (f32[]{:T(128)}, bf16[3,5]{1,0:T(8,128)S(1)}) all-reduce(%x, %y), \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, to_apply=%add
  %all-gather-start.1 = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%z), \
replica_groups=[2,4]<=[8]
  %all-gather-done.1 = f32[8,4]{1,0} all-gather-done(%all-gather-start.1)
  %collective-permute-start = (bf16[8,2]{1,0}, bf16[8,2]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%z), source_target_pairs={{0,1},{1,0}}
  %custom-call.1 = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", metadata_={
"xprof_metadata":"{}"
}}, metadata={op_name="jit(step)/block_0/checkpoint/rematted_computation/attention/splash"}
}
"""


def test_what_a_text_says():
    found = hlo.collectives(HLO)
    assert [one["group"] for one in found] == [4, 4, 4, None]
    assert hlo.totals(found) == {
        "reduce-scatter": {"count": 1, "bytes": 32},
        "all-reduce": {"count": 1, "bytes": 4 + 30},
        "all-gather": {"count": 1, "bytes": 128},
        "collective-permute": {"count": 1, "bytes": 32},
    }
    assert hlo.kernels(HLO) == ["jit(step)/block_0/attention/splash"]


def test_the_message_of_xla_when_memory_is_too_small():
    said = "total memory required for HLO temporaries (186.00G) exceeds available HBM (15.75G)."
    memory = module._out_of_memory(said, 2**30)
    assert memory["total"] == 187 * 2**30 and memory["available"] == 15.75 * 2**30
    said = "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
    assert module._out_of_memory(said, 2**30)["total"] == 20.5 * 2**30
    assert module._out_of_memory("something else", 0) is None


def test_flops_count_what_masks_show():
    causal, whole = (count_flops(presets.config(name)) for name in ("gpt_nano", "bert_nano"))
    assert causal["matmul"] == whole["matmul"]
    # Two layers of four heads of 16.
    assert whole["attention"] == 2 * 4 * 64 * 64 * 4 * 16
    assert causal["attention"] / whole["attention"] == 65 / 128


def arrays_on_one_v5e(time):
    """What makes an array [8, time, size] of a dtype on one v5e, which need not be there."""
    mesh = target.mesh_of("v5e:1x1", {"data": 1})
    sharding = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
    return lambda dtype, *sizes: jax.ShapeDtypeStruct((8, time, *sizes), dtype, sharding=sharding)


def forward_and_backward(attend, floats, *rest):
    """The work and the memory of `attend(floats, *rest)` and of its gradients, on that chip."""

    def step(floats, slope, *rest):
        out, pull = jax.vjp(lambda floats: attend(floats, *rest), floats)
        return out, pull(slope)

    with compiling_for("tpu"):
        traced = jax.jit(step).trace(floats, floats[0], *rest)
    program = traced.lower().compile()
    return program_work(traced.jaxpr, program.as_text()), program.memory_analysis()


@pytest.mark.parametrize(
    ("mask", "gated", "time", "most"),
    [
        # What it may move, in multiples of each input and output once, and hold besides, in GiB.
        ("causal", False, 8192, (1.25, 0.05)),
        pytest.param("causal", True, 8192, (1.25, 0.05), marks=pytest.mark.slow),
        pytest.param("causal", True, 32768, (1.25, 0.2), marks=pytest.mark.slow),
        pytest.param("prefix", True, 8192, (2.0, 0.3), marks=pytest.mark.slow),
        pytest.param("bidirectional", True, 8192, (2.0, 0.3), marks=pytest.mark.slow),
        pytest.param("prefix", False, 32768, (2.5, 1.2), marks=pytest.mark.slow),
    ],
)
def test_linear_attention_moves_little_more_than_it_must(mask, gated, time, most):
    """Of 8 examples and 12 heads of 64 in bfloat16, forward and backward, on one v5e."""
    array = arrays_on_one_v5e(time)

    def attend(floats, source):
        q, k, v = (x.reshape(8, time, 12, 64) for x in floats[:3])
        masks = {"source_mask": source} if mask == "prefix" else {}
        if gated:
            out = gated_linear_attention(q, k, v, floats[3], mask, **masks)
        else:
            out = linear_attention(q, k, v, mask, **masks)
        return out.reshape(floats[0].shape)

    x = array("bfloat16", 768)
    floats = [x, x, x, *[array("float32", 12)] * gated]
    work, memory = forward_and_backward(attend, floats, array("int32"))
    least = 8 * time * (11 * 768 * 2 + 3 * 12 * 4 * gated)
    assert 1 < work.bytes / least < most[0]
    temporaries = memory.temp_size_in_bytes / 2**30
    assert temporaries < most[1]
    parts = memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert temporaries + parts / 2**30 < 5
    # Splash takes 31 ms at 8192 by its products, of heads that fill half of the matrix unit.
    assert target.CHIPS["v5e"].seconds(work) < 0.2 * 31e-3 * time / 8192


@pytest.mark.slow
def test_the_delta_rule_moves_little_more_than_it_must():
    """In XLA's operations; twelve heads, which move 1.74 times the least, compile for a minute."""
    heads, time = 2, 8192
    array = arrays_on_one_v5e(time)

    def attend(floats):
        q, k, v = (x.reshape(8, time, heads, 64) for x in floats[:3])
        return delta_attention(q, k, v, *floats[3:]).reshape(floats[0].shape)

    x, gate = array("bfloat16", heads * 64), array("float32", heads)
    work, memory = forward_and_backward(attend, [x, x, x, gate, gate])
    # Forward q, k, v and the output; backward these, the output's gradient and three gradients.
    least = 8 * time * heads * (11 * 64 * 2 + 6 * 4)
    assert 1 < work.bytes / least < 2
    assert memory.temp_size_in_bytes / 2**30 < 0.05
