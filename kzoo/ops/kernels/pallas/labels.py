"""What each token sees, in integers along time."""

import jax
import jax.numpy as jnp

from kzoo.ops.kernels.pallas.form import LEFT, SUBLANES


def labels(form, tokens):
    """Of time that is sorted by (document, level): int32 [batch or 1, 8, steps · tokens].

    In rows: the first and the last key that a query sees, the first and the last query that sees a
    key, and whether the token counts. Padding stands in the document beside it.

    Args:
        form: a `Form`.
        tokens: `kzoo.ops.sorting.Tokens`; None where all tokens see all on the form's sides.
    """
    document, level, shown = (
        None if x is None else jnp.reshape(x, (x.shape[0], form.time)).astype("int32")
        for x in (tokens.document, tokens.level, tokens.shown)
    )
    clock = jnp.arange(form.time, dtype="int32")[None]
    documents = _runs(clock, document)
    groups = clock, clock
    if form.other_side:
        groups = _runs(clock, document, level)
    if form.sides[0] == LEFT:
        rows = documents[0], groups[1], groups[0], documents[1]
    else:
        rows = groups[0], documents[1], documents[0], groups[1]
    rows = *rows, jnp.ones_like(clock) if shown is None else shown
    rows = jnp.stack(jnp.broadcast_arrays(*rows), axis=1)
    missing = form.steps * form.tokens - form.time
    rows = jnp.pad(rows, [(0, 0), (0, 0), (0, missing)], mode="edge")
    return jnp.pad(rows, [(0, 0), (0, SUBLANES - rows.shape[1]), (0, 0)])


def _runs(clock, *labels):
    """Of each token the first and the last one of the run of equal labels that it stands in."""
    labels = [x for x in labels if x is not None]
    if not labels:
        return jnp.zeros_like(clock), jnp.full_like(clock, clock.shape[1] - 1)
    changes = sum((x[:, 1:] != x[:, :-1]).astype("int32") for x in labels) > 0
    begins = jnp.pad(changes, [(0, 0), (1, 0)], constant_values=True)
    ends = jnp.pad(changes, [(0, 0), (0, 1)], constant_values=True)
    first = jax.lax.cummax(jnp.where(begins, clock, 0), axis=1)
    last = jax.lax.cummin(jnp.where(ends, clock, clock.shape[1]), axis=1, reverse=True)
    return first, last
