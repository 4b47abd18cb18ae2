"""The kernel in C++ of gated linear attention against the definition."""

import pytest
from test_gated_linear import FORMS, ORDERS, assert_equals_the_definition, case

from kzoo import masks
from kzoo.ops.kernels.native import library

NATIVE = {"implementation": "native"}
LARGE = {"dim": 16, "value_dim": 32}


@pytest.fixture(autouse=True)
def made():
    if reason := library.missing():
        pytest.skip(reason)


# Groups shorter and longer than a chunk, chunks of a vector's lanes and of one token.
@pytest.mark.parametrize("time, chunk", [(45, 7), (21, 64), (70, 16), (5, 1), (1, 64)])
def test_every_order_packed_and_padded_equals_the_definition(time, chunk):
    arrays, sequence, cotangent = case(time, **LARGE)
    value, gradients = assert_equals_the_definition(
        arrays,
        cotangent,
        ours={**NATIVE, "chunk_size": chunk},
        mask=masks.heads(*ORDERS),
        **sequence,
    )
    padded = sequence["padding_mask"] == 0
    for x in (value, *gradients):
        assert (x[padded] == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_heads_that_share_keys_and_other_forms_equal_the_definition(form):
    for dtype in ("float32", "bfloat16") if form == "as they are" else ("float32",):
        arrays, sequence, cotangent = case(37, 10, 5, batch=4, **LARGE)
        own = {**NATIVE, "chunk_size": 16}
        mask = masks.heads(*ORDERS)
        assert_equals_the_definition(
            arrays, cotangent, dtype, ours=own, mask=mask, **sequence, **FORMS[form]
        )
