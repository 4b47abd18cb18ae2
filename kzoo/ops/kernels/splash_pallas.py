"""The Pallas kernel of splash attention, and its gradient in the precision asked for."""

from functools import partial

import jax
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as tile_masks

from kzoo.precision import float32_products


def kernel(windows, times, tiles, interpret):
    """The kernel of heads that see `windows`, of `times` that divide into `tiles`."""

    def tile_mask(window):
        full = tile_masks.FullMask(times)
        return full if window is None else _HalfPlane(times, window, offset=0)

    q, kv = tiles
    return kernels.make_splash_mha(
        tile_masks.MultiHeadMask([tile_mask(window) for window in windows]),
        block_sizes=kernels.BlockSizes(q, kv, None, q, kv, None, q, kv),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )


class _HalfPlane(tile_masks.LocalMask):
    """All on one side of a diagonal, so that a tile with four equal corners is uniform.

    Splash looks at every entry of every tile when it is traced, for mixed heads at time 16384
    some ten seconds long; most tiles are uniform.
    """

    def __getitem__(self, index):
        rows, columns = (np.array([x.start, x.stop - 1]) for x in index)
        corners = self.mask_function(rows[:, None], columns[None, :])
        if corners.any() and not corners.all():
            return super().__getitem__(index)
        return np.full([x.stop - x.start for x in index], corners[0, 0])


# What splash multiplies is in the precision that holds while it is traced, backwards too.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def run(window, kernel, q, k, v, segments, last):
    """Of q, k and v [batch, heads, time, dim] what the kernel attends to, with a gradient."""
    return _run_forward(window, kernel, q, k, v, segments, last)[0]


def _run_forward(window, kernel, q, k, v, segments, last):
    def attend(q, k, v):
        def example(q, k, v, segments, last):
            return _until(kernel, last, window)(q, k, v, segment_ids=segments)

        ids = None if segments is None else kernels.SegmentIds(*segments)
        return jax.vmap(example)(q, k, v, ids, last)

    with float32_products(q.dtype):
        return jax.vjp(attend, q, k, v)


def _run_backward(window, pull, slope):
    with float32_products(slope.dtype):
        return None, *pull(slope), None, None


run.defvjp(_run_forward, _run_backward)


def _until(kernel, last, window):
    """The kernel that sees `key <= column + ahead`, as one that sees `key <= last[query]`."""
    if last is None:
        return kernel
    ahead = window[1]
    infos = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
    infos = (info._replace(q_sequence=last - ahead) for info in infos)
    return kernels.SplashAttentionKernel(*infos, **kernel.kwargs)
