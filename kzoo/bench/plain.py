"""A plain GPT-2 in JAX without a framework, for comparison."""

import jax
import jax.numpy as jnp
import numpy as np

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7


def plain_step(sizes, learning_rate, weight_decay):
    """A compiled train step: pre-norm blocks, dense softmax attention, tied embeddings, AdamW.

    Args:
        sizes: a `kzoo.bench.train.Sizes`.
        learning_rate, weight_decay: of AdamW, which decays all variables.

    Returns:
        The state, a tuple of pytrees, and the step: (state, tokens, targets) to (state, loss),
        which donates the state.
    """
    parameters = _parameters(sizes)
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    state = (parameters, zeros, jax.tree.map(jnp.zeros_like, parameters), jnp.zeros((), "int32"))

    def step(state, tokens, targets):
        parameters, first, second, count = state
        loss, slopes = jax.value_and_grad(_loss)(parameters, tokens, targets, sizes.num_heads)
        count += 1
        scale = learning_rate * jnp.sqrt(1 - BETA_2**count) / (1 - BETA_1**count)
        first = jax.tree.map(lambda m, g: BETA_1 * m + (1 - BETA_1) * g, first, slopes)
        second = jax.tree.map(lambda m, g: BETA_2 * m + (1 - BETA_2) * g * g, second, slopes)

        def update(x, m, s):
            decayed = x * (1 - learning_rate * weight_decay)
            return decayed - scale * m / (jnp.sqrt(s) + EPSILON)

        return (jax.tree.map(update, parameters, first, second), first, second, count), loss

    return state, jax.jit(step, donate_argnums=0)


def _parameters(sizes):
    random, width = np.random.default_rng(0), sizes.hidden_dim

    def normal(*shape):
        return jnp.asarray(random.normal(scale=0.02, size=shape).astype("float32"))

    def dense(inputs, outputs):
        return {"kernel": normal(inputs, outputs), "bias": jnp.zeros(outputs)}

    def norm():
        return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}

    def block():
        return {
            "norm_1": norm(),
            "qkv": dense(width, 3 * width),
            "out": dense(width, width),
            "norm_2": norm(),
            "up": dense(width, 4 * width),
            "down": dense(4 * width, width),
        }

    return {
        "tokens": normal(sizes.vocabulary_size, width),
        "positions": normal(sizes.time, width),
        "blocks": [block() for _ in range(sizes.num_layers)],
        "norm": norm(),
    }


def _loss(parameters, tokens, targets, num_heads):
    x = parameters["tokens"][tokens] + parameters["positions"]
    for block in parameters["blocks"]:
        x += _dense(
            block["out"], _attend(_dense(block["qkv"], _norm(block["norm_1"], x)), num_heads)
        )
        x += _dense(block["down"], jax.nn.gelu(_dense(block["up"], _norm(block["norm_2"], x))))
    logits = _norm(parameters["norm"], x) @ parameters["tokens"].T
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (jax.nn.logsumexp(logits, axis=-1) - chosen).mean()


def _attend(qkv, num_heads):
    batch, time, _ = qkv.shape
    q, k, v = jnp.split(qkv.reshape(batch, time, num_heads, -1), 3, axis=-1)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    scores = jnp.where(jnp.tri(time, dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(batch, time, -1)


def _dense(parameters, x):
    return x @ parameters["kernel"] + parameters["bias"]


def _norm(parameters, x):
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return x * parameters["scale"] + parameters["bias"]
