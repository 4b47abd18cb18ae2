"""Linear and gated linear attention on a TPU: each array is read once, forward and backward."""

import jax.numpy as jnp

from kzoo.ops.features import Features
from kzoo.ops.kernels.derivatives import by_hand
from kzoo.ops.kernels.pallas.plain import plain

NAME, MECHANISM = "pallas", ("linear", "gated_linear")
ANY_DIRECTION = False
RAW = True  # it takes q, k and v as they come: in the layer's dtype, whatever stands at padding
ONE_ORDER = True  # heads of other levels are other calls
SIZES = (16, 32, 64, 128, 256)  # of a head
MOST_RATIO = 2  # of features and values, or a state grows beyond what vector memory should hold


def preferred(spec):
    """Whether "auto" takes it: on TPUs."""
    return spec.platform == "tpu"


def unsupported_reason(spec) -> str | None:
    """Why it cannot compute an attention, in words for its user, or None if it can."""
    for order in spec.mask.per_head(spec.num_heads):
        if not order.is_order:
            return f"linear attention follows orders, neither custom masks nor &: {order!r}"
    features = spec.dim if spec.features is None else spec.features
    sizes = features, spec.value_dim
    if any(size not in SIZES for size in sizes) or max(sizes) > MOST_RATIO * min(sizes):
        return (
            f"the pallas kernel takes heads of {', '.join(map(str, SIZES))} features and values, "
            f"at most {MOST_RATIO} times as many of one as of the other, not {sizes}"
        )
    if spec.dtype not in ("float32", "bfloat16"):
        return f"the pallas kernel computes float32 and bfloat16, not {spec.dtype}"
    if not spec.sizes_known:
        return "the pallas kernel needs the batch and the time when the program is made"
    if not spec.same_sequence:
        return "the pallas kernel attends inside one whole sequence"
    if spec.state:
        return "the pallas kernel neither takes nor returns a state"
    return None


def run(
    q,
    k,
    v,
    features,
    weights,
    tokens,
    initial_state,
    *,
    chunk_size,
    reverse=False,
    log_decay=None,
    normalize=True,
    scale=None,
    platform="cpu",
):
    """What `kzoo.ops.kernels.chunked.run` computes, times `scale`; the state is None.

    q, k and v are bfloat16 or float32, and products are formed of these: bfloat16 ones, features
    too, in one pass, as under softmax. Sums and states are float32. Feature maps that work entry
    by entry are applied inside, others before. The size of a chunk is the kernel's own. Elsewhere
    than on the platform "tpu" it is interpreted: run as ordinary operations, slowly.
    """
    from kzoo.ops.kernels.pallas import form as forms  # Pallas takes a while to import
    from kzoo.ops.kernels.pallas.labels import labels

    dtype = v.dtype.name
    phi = features.phi if features.phi is not None and features.phi.elementwise else None
    rotary = features.rotary
    if phi is None and features.phi is not None:
        rotary = rotary and not features.phi.of_products
        wide = (x.astype("float32") for x in (q, k))
        before = Features(features.phi, features.rotary and not rotary)
        q, k, _, _ = before(*wide, weights, tokens.sin_cos, tokens.shown)
    sides = (forms.LEFT, forms.RIGHT) if tokens.level is not None else (forms.LEFT,)
    if reverse:
        sides = (forms.RIGHT,)
    marked = (tokens.document, tokens.level, tokens.shown)
    form = forms.Form(
        heads=q.shape[2] + -q.shape[2] % forms.packed(q.shape[3], v.shape[3]),
        dim=q.shape[3],
        value_dim=v.shape[3],
        time=q.shape[1],
        dtype=dtype,
        phi=phi,
        scale=1.0 if scale is None else float(scale),
        rotary=rotary,
        normalize=normalize,
        gated=log_decay is not None,
        labelled=any(x is not None for x in marked),
        sides=sides,
        interpret=platform != "tpu",
    )
    others = {}
    if form.labelled:
        others["labels"] = labels(form, tokens)
    if rotary:
        sine, cosine = (x.astype("float32") for x in tokens.sin_cos)
        table = jnp.tile(jnp.concatenate([cosine, sine], axis=-1), form.packed)
        missing = form.steps * form.tokens - form.time
        others["table"] = jnp.pad(table, [(0, 0), (0, missing), (0, 0)])
    floats = {"q": q, "k": k, "v": v}
    floats = {name: flat(form, x.astype(dtype)) for name, x in floats.items()}
    if log_decay is not None:
        floats["gates"] = _rows(form, jnp.broadcast_to(log_decay, q.shape[:3]))
    out = attend(form, floats, others)
    return out.reshape(*out.shape[:2], -1, form.value_dim)[:, :, : q.shape[2]], (None, None)


def _rows(form, gates):
    """[batch, time, heads] as [batch, blocks, 8, steps · tokens], zeros where it is filled up."""
    missing = form.steps * form.tokens - form.time
    gates = jnp.swapaxes(gates.astype("float32"), 1, 2)
    gates = jnp.pad(gates, [(0, 0), (0, form.heads - gates.shape[1]), (0, missing)])
    gates = gates.reshape(gates.shape[0], form.blocks, form.packed, -1)
    return jnp.pad(gates, [(0, 0), (0, 0), (0, 8 - form.packed), (0, 0)])


def flat(form, x):
    """[batch, time, heads, dim] with heads and dim in one axis, filled up to whole blocks."""
    missing = form.heads - x.shape[2]
    if missing:
        x = jnp.pad(x, [(0, 0), (0, 0), (0, missing), (0, 0)])
    return x.reshape(*x.shape[:2], -1)


def _forward(form, floats, others):
    from kzoo.ops.kernels.pallas import calls

    arrays = calls.forward(form, floats | others)
    saved = {name: x for name, x in arrays.items() if name not in floats | others}
    return saved["out"], saved


def _backward(form, floats, others, saved, slope):
    from kzoo.ops.kernels.pallas import calls

    slopes = calls.backward(form, floats | others | saved | {"slope": slope})
    return {name: slopes[f"d{name}"] for name in floats}


attend = by_hand(lambda *arrays: _forward(*arrays)[0], _forward, _backward, plain)
