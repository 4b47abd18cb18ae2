"""What a program does, against what is counted by hand."""

import logging

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("programs for TPUs are JAX's", allow_module_level=True)

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kzoo.training.compile_only.target import CHIPS
from kzoo.training.roofline import Work, jaxpr_work
from kzoo.training.traffic import traffic


def work_of(function, *shapes, dtype="bfloat16"):
    return jaxpr_work(jax.make_jaxpr(function)(*(jnp.zeros(shape, dtype) for shape in shapes)))


def test_a_kernel_whose_blocks_stay_while_their_index_does():
    def kernel(a, b, out, total):
        @pl.when(pl.program_id(2) == 0)
        def _():
            total[...] = jnp.zeros_like(total)

        total[...] += jnp.dot(a[...], b[...], preferred_element_type="float32")

        @pl.when(pl.program_id(2) == 3)
        def _():
            out[...] = total[...].astype(out.dtype)

    def product(a, b):  # of blocks of 128 x 128, 2 by 4 and 4 by 3 of them
        return pl.pallas_call(
            kernel,
            grid=(2, 3, 4),
            in_specs=[
                pl.BlockSpec((128, 128), lambda i, j, k: (i, k)),
                pl.BlockSpec((128, 128), lambda i, j, k: (k, j)),
            ],
            out_specs=pl.BlockSpec((128, 128), lambda i, j, k: (i, j)),
            out_shape=jax.ShapeDtypeStruct((256, 384), "bfloat16"),
            scratch_shapes=[pltpu.VMEM((128, 128), "float32")],
        )(a, b)

    work = work_of(product, (256, 512), (512, 384))
    block = 128 * 128 * 2
    # Both operands change at each of 24 steps, the result at every fourth.
    assert work.bytes == (24 + 24 + 6) * block
    assert work.flops == work.unit_flops == 2 * 256 * 512 * 384


def test_a_kernel_that_prefetched_integers_steer():
    def kernel(which, x, out):
        @pl.when(which[pl.program_id(0)] > 0)
        def _():
            out[...] = jnp.dot(x[...], x[...].T, preferred_element_type="float32")

    def run(x):
        spec = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(5,),
            in_specs=[pl.BlockSpec((128, 64), lambda i, which: (which[i], 0))],
            out_specs=pl.BlockSpec((128, 128), lambda i, which: (0, 0)),
        )
        shape = jax.ShapeDtypeStruct((128, 128), "float32")
        call = pl.pallas_call(kernel, grid_spec=spec, out_shape=shape)
        return jax.jit(call)(np.array([0, 2, 2, 1, 0], "int32"), x)

    work = work_of(run, (300, 64))
    # Blocks 0, 2, 1 and 0, of which 2 has 44 of its 128 tokens; 64 numbers fill 128 lanes.
    assert work.bytes == 5 * 4 + (3 * 128 + 44) * 128 * 2 + 128 * 128 * 4
    assert work.flops == 3 * 2 * 128 * 128 * 64  # three of five are above 0
    assert work.unit_flops == 2 * work.flops  # half of the unit stands idle


def test_loops_count_by_their_lengths_and_branches_by_the_dearest():
    def loop(x):
        def step(carry, _):
            some = lambda x: x @ x  # noqa: E731
            return jax.lax.cond(carry[0, 0] > 0, some, lambda x: x @ x @ x, carry), None

        return jax.lax.scan(step, x, None, length=7)[0]

    assert work_of(loop, (128, 128)).flops == 7 * 2 * 2 * 128**3


def test_float32_takes_six_passes_where_it_is_asked_for():
    def product(x):
        return jnp.dot(x, x, precision="highest")

    work = work_of(product, (256, 256), dtype="float32")
    assert work.unit_flops == 6 * work.flops == 6 * 2 * 256**3
    assert work_of(product, (256, 256)).unit_flops == work.flops


def test_a_chip_takes_the_longer_of_products_and_bytes():
    chip = CHIPS["v5e"]
    assert chip.seconds(Work(bytes=819 * 10**9, unit_flops=197 * 10**12 // 2)) == 1
    assert chip.seconds(Work(bytes=1, unit_flops=197 * 10**12)) == 1


PROGRAM = """
HloModule step, is_scheduled=true, entry_computation_layout={(f32[64,8,64]{2,1,0:T(8,128)})->f32[]}

%sliced (p.0: f32[64,8,64], p.1: s32[]) -> f32[1,8,64] {
  %p.0 = f32[64,8,64]{2,1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %ds = f32[1,8,64]{2,1,0:T(8,128)S(1)} dynamic-slice(%p.0, %p.1, %zero, %zero), \
dynamic_slice_sizes={1,8,64}
}

%written (q.0: bf16[64,8,64], q.1: s32[], q.2: f32[1,8,64]) -> bf16[64,8,64] {
  %q.0 = bf16[64,8,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %q.1 = s32[]{:T(128)} parameter(1)
  %q.2 = f32[1,8,64]{2,1,0:T(8,128)} parameter(2)
  %zero.1 = s32[]{:T(128)} constant(0)
  %narrow = bf16[1,8,64]{2,1,0:T(8,128)(2,1)} convert(%q.2)
  ROOT %dus = bf16[64,8,64]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%q.0, %narrow, %q.1, \
%zero.1, /*index=4*/%zero.1)
}

%body (s: (s32[], f32[64,8,64], bf16[64,8,64])) -> (s32[], f32[64,8,64], /*index=2*/bf16[64,8,64]) {
  %s = (s32[]{:T(128)}, f32[64,8,64]{2,1,0:T(8,128)}, bf16[64,8,64]{2,1,0:T(8,128)(2,1)}) \
parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%s), index=0
  %x = f32[64,8,64]{2,1,0:T(8,128)} get-tuple-element(%s), index=1
  %y = bf16[64,8,64]{2,1,0:T(8,128)(2,1)} get-tuple-element(%s), index=2
  %one = f32[1,8,64]{2,1,0:T(8,128)S(1)} fusion(%x, %i), kind=kLoop, calls=%sliced
  %all = bf16[64,8,64]{2,1,0:T(8,128)(2,1)} fusion(%y, %i, %one), kind=kLoop, calls=%written
  ROOT %t = (s32[]{:T(128)}, f32[64,8,64]{2,1,0:T(8,128)}, bf16[64,8,64]{2,1,0:T(8,128)(2,1)}) \
tuple(%i, %x, %all)
}

%condition (c: (s32[], f32[64,8,64], bf16[64,8,64])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[64,8,64]{2,1,0:T(8,128)}, bf16[64,8,64]{2,1,0:T(8,128)(2,1)}) \
parameter(0)
  %n = s32[]{:T(128)S(6)} constant(64)
  %j = s32[]{:T(128)S(6)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)S(6)} compare(%j, %n), direction=LT
}

ENTRY %main (a: f32[64,8,64]) -> bf16[64,8,64] {
  %a = f32[64,8,64]{2,1,0:T(8,128)} parameter(0)
  %k = s32[]{:T(128)S(6)} constant(0)
  %b = bf16[64,8,64]{2,1,0:T(8,128)(2,1)} custom-call(), custom_call_target="AllocateBuffer"
  %start = (s32[]{:T(128)}, f32[64,8,64]{2,1,0:T(8,128)}, bf16[64,8,64]{2,1,0:T(8,128)(2,1)}) \
tuple(%k, %a, %b)
  %w = (s32[]{:T(128)}, f32[64,8,64]{2,1,0:T(8,128)}, bf16[64,8,64]{2,1,0:T(8,128)(2,1)}) \
while(%start), condition=%condition, body=%body
  %r = bf16[64,8,64]{2,1,0:T(8,128)(2,1)} get-tuple-element(%w), index=2
  %go = (bf16[64,8,64]{2,1,0:T(8,128)(2,1)S(1)}, bf16[64,8,64]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) \
copy-start(%r)
  %gone = bf16[64,8,64]{2,1,0:T(8,128)(2,1)S(1)} copy-done(%go)
  ROOT %out = bf16[64,8,64]{1,0,2:T(8,128)(2,1)} copy(%gone)
}
"""


def test_traffic_of_a_loop_that_slices_and_writes_slices():
    # 8 x 64 numbers lie in a tile of 8 x 128; each step reads one in float32 and writes one in
    # bfloat16; then all goes to the vector memory, and back in tiles of [64, 8] by 64.
    loop = 64 * (8 * 128 * 4 + 8 * 128 * 2)
    assert traffic(PROGRAM) == loop + 64 * 8 * 128 * 2 + 64 * 64 * 128 * 2


def test_a_loop_whose_length_nobody_says_counts_once(caplog):
    text = PROGRAM.replace("direction=LT", "direction=NE")
    with caplog.at_level(logging.WARNING, "kzoo"):
        assert traffic(PROGRAM) - traffic(text) == 63 * 8 * 128 * (4 + 2)
    assert "the loop w runs" in caplog.text
    known = text.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"64"}}')
    assert traffic(known) == traffic(PROGRAM)
