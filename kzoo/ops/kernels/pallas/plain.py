"""The same attention in JAX's own operations, dense: for derivatives past the gradient."""

import jax.numpy as jnp

from kzoo.ops.tensors import ratio


def plain(form, floats, others):
    """What the kernels compute, of the same arrays; memory is quadratic in time.

    Args:
        form: a `kzoo.ops.kernels.pallas.form.Form`.
        floats: "q", "k", "v" flat, and "gates" if the form is gated.
        others: "labels" and "table", if the form asks for them.
    """
    q, k, v = (
        floats[name].astype("float32").reshape(*floats[name].shape[:2], form.heads, -1)
        for name in "qkv"
    )
    visible, valid = _visible(form, others.get("labels"))
    q, k, v = (jnp.where(valid, x, 0) for x in (q, k, v))
    if form.phi is not None:
        q, k = form.phi.of_query(q), jnp.where(valid, form.phi.of_key(k), 0)
    totals = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest")
    products = totals
    if form.rotary:
        table = others["table"][:, : form.time, None, : form.dim]
        q, k = (_rotated(x, table) for x in (q, k))
        products = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest")
    if form.gated:
        decay = _decay(form, floats["gates"])
        products, totals = products * decay, totals * decay
    products = products * form.scale
    products, totals = (jnp.where(visible[:, None], x, 0) for x in (products, totals))
    out = jnp.einsum("bhqk,bkhd->bqhd", products, v, precision="highest")
    if form.normalize:
        out = ratio(out, jnp.swapaxes(totals.sum(-1), 1, 2)[..., None])
    out = jnp.where(valid, out, 0)
    return out.reshape(*out.shape[:2], -1).astype(floats["v"].dtype)


def _visible(form, labels):
    """Booleans [batch or 1, query, key], and which tokens count, [batch or 1, time, 1, 1]."""
    clock = jnp.arange(form.time)
    if labels is None:
        behind = clock[None, :, None] - clock[None, None, :]
        seen = {"left": behind >= 0, "right": behind <= 0}
        visible = seen[form.sides[0]] | seen[form.sides[-1]]
        return visible, jnp.ones((1, form.time, 1, 1), bool)
    _, _, low, high, shown = (labels[:, i, : form.time] for i in range(5))
    visible = (low[:, None] <= clock[:, None]) & (clock[:, None] <= high[:, None])
    return visible, (shown > 0)[:, :, None, None]


def _decay(form, gates):
    """exp of the gates between query and key, each a sum: [batch, heads, query, key]."""
    gates = gates[:, :, : form.packed, : form.time].reshape(-1, form.heads, 1, form.time)
    clock = jnp.arange(form.time)
    row, column = clock[:, None], clock[None]

    def sums(reach, beyond):
        between = jnp.where(reach, gates, 0)
        return jnp.matmul(between, beyond.astype("float32"), precision="highest")

    before = sums(column <= row, column < row)
    after = sums(column >= row, column > row)
    return jnp.exp(jnp.where(column <= row, before, after))


def _rotated(x, table):
    cosine, sine = jnp.split(table, 2, axis=-1)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )
