"""Linear and gated linear attention on a TPU: each array is read once, forward and backward."""

import jax.numpy as jnp

from kzoo.masks.orders import ORDERS_ONLY, no_order
from kzoo.ops.features import Features
from kzoo.ops.kernels.derivatives import by_hand
from kzoo.ops.kernels.pallas.plain import plain

NAME, MECHANISM = "pallas", ("linear", "gated_linear")
RAW = True  # it takes q, k and v as they come: in the layer's dtype, whatever stands at padding
ONE_ORDER = True  # heads of other levels are other calls
SIZES = (16, 32, 64, 128, 256)  # of a head
MOST_RATIO = 2  # of features and values, or a state grows beyond what vector memory should hold


def preferred(spec):
    """Whether "auto" takes it: on TPUs."""
    return spec.platform == "tpu"


def unsupported_reason(spec) -> str | None:
    """Why it cannot compute an attention, in words for its user, or None if it can."""
    other = no_order(spec.mask.per_head(spec.num_heads))
    if other is not None:
        return f"linear attention {ORDERS_ONLY}: {other!r}"
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
    dtype, heads, phi, rotary = v.dtype.name, q.shape[2], features.phi, features.rotary
    if phi is not None and not phi.elementwise:
        rotary = rotary and not phi.of_products
        wide = (x.astype("float32") for x in (q, k))
        before = Features(phi, features.rotary and not rotary)
        q, k, _, _ = before(*wide, weights, tokens.sin_cos, tokens.shown)
        phi = None
    form = _form(
        q,
        v,
        tokens,
        reverse,
        dtype=dtype,
        phi=phi,
        scale=1.0 if scale is None else float(scale),
        rotary=rotary,
        normalize=normalize,
        gated=log_decay is not None,
        interpret=platform != "tpu",
    )
    floats = {"q": q, "k": k, "v": v}
    floats = {name: flat(form, x.astype(dtype)) for name, x in floats.items()}
    if log_decay is not None:
        floats["gates"] = _rows(form, jnp.broadcast_to(log_decay, q.shape[:3]))
    out = attend(form, floats, _of_tokens(form, tokens))
    return out.reshape(*out.shape[:2], -1, form.value_dim)[:, :, :heads], (None, None)


def _form(q, v, tokens, reverse, **fields):
    """The `Form` of q and v [batch, time, heads, dim] and of `Tokens`."""
    from kzoo.ops.kernels.pallas import form  # Pallas takes a while to import

    sides = (form.LEFT,) if tokens.level is None else (form.LEFT, form.RIGHT)
    marked = tokens.document, tokens.level, tokens.shown
    return form.Form(
        heads=q.shape[2] + -q.shape[2] % form.packed(q.shape[3], v.shape[3]),
        dim=q.shape[3],
        value_dim=v.shape[3],
        time=q.shape[1],
        labelled=any(x is not None for x in marked),
        sides=(form.RIGHT,) if reverse else sides,
        **fields,
    )


def _of_tokens(form, tokens):
    """The labels and the rotary table that a form asks for, by name."""
    from kzoo.ops.kernels.pallas.labels import labels

    others = {"labels": labels(form, tokens)} if form.labelled else {}
    if form.rotary:
        sine, cosine = (x.astype("float32") for x in tokens.sin_cos)
        table = jnp.tile(jnp.concatenate([cosine, sine], axis=-1), form.packed)
        missing = form.steps * form.tokens - form.time
        others["table"] = jnp.pad(table, [(0, 0), (0, missing), (0, 0)])
    return others


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
