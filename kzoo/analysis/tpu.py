"""What Keras's attention will really compute on JAX + TPU, found without a TPU.

On a TPU, Keras 3 computes `keras.ops.dot_product_attention` with Pallas's splash kernel if it can,
and loses some of its arguments on the way. Here the model runs with this path forced, in Pallas's
interpret mode, and every call is compared with the attention that its arguments ask for.
"""

import contextlib
import functools
import itertools
import sys
import types

import keras
import numpy as np
from keras import ops

LENGTH = 128  # the splash kernel takes multiples of it
# Queries, keys and values have unit scale, so that another mask or scale moves outputs by about 1
# and rounding by much less than this.
TOLERANCE = {"bfloat16": 0.05, "float16": 0.01}
MODES = ("compiled", "eager")  # fit, evaluate and predict; and model(x)
NEVER = "never calls keras.ops.dot_product_attention"


@contextlib.contextmanager
def watching(see):
    """A context in which every call of a layer, nested ones too, goes through `see`.

    Args:
        see: a function of the layer, of a function without arguments that calls it, and of its
            first argument, which returns the layer's outputs.
    """
    original = keras.layers.Layer.__call__

    def call(layer, *args, **kwargs):
        first = args[0] if args else next(iter(kwargs.values()), None)
        return see(layer, lambda: original(layer, *args, **kwargs), first)

    keras.layers.Layer.__call__ = call
    try:
        yield
    finally:
        keras.layers.Layer.__call__ = original


def walk(layer, prefix="", seen=None):
    """All layers within a layer, each once, as pairs (path, layer)."""
    seen = set() if seen is None else seen
    for child in layer._flatten_layers(include_self=False, recursive=False):
        if id(child) not in seen:
            seen.add(id(child))
            path = prefix + child.name
            yield path, child
            yield from walk(child, path + "/", seen)


def attention_on_tpu(model, run, values, stretched=None):
    """The attention layers of a model, and what each computes on JAX + TPU.

    Args:
        model: a Keras model.
        run: function of a list of arrays that calls the model.
        values: list of arrays, the model's inputs.
        stretched: the same inputs at `LENGTH` positions; None if the model is known not to take
            that length.

    Returns:
        `(layers, findings, notes)`: a dict for each attention layer (`path`, `class`, `asked`,
        `tpu`); dicts of kind `tpu` for those that compute something else than asked; and
        sentences about what was not checked.
    """
    layers = {id(layer): (path, layer) for path, layer in walk(model)}
    if keras.backend.backend() != "jax":
        found = [_summary(path, layer, []) for path, layer in layers.values() if _attends(layer)]
        found = [{**summary, "tpu": "not checked"} for summary in found]
        reason = f"the backend is {keras.backend.backend()}, and only JAX has this path"
        return found, [], [f"attention on TPU was not checked: {reason}"]
    calls, notes = _record(model, run, values, modes=("eager",), forced=False), []
    if calls:
        calls, notes = _forced(model, run, values, stretched)
    found, findings = [], []
    for call in calls:  # the model itself can call it, and layers that Keras does not track
        layers.setdefault(id(call.layer), (call.layer.name, call.layer))
    for path, layer in layers.values():
        of_layer = [call for call in calls if call.layer is layer]
        if of_layer or _attends(layer):
            found.append(_summary(path, layer, of_layer))
            wrong = [call for call in of_layer if call.difference]
            if wrong:
                findings.append({"kind": "tpu", "where": path, "detail": _detail(layer, wrong)})
    return found, findings, notes


def _attends(layer):
    """Whether the class is named an attention, as all of Keras, keras-hub and kzoo are."""
    return type(layer).__name__.endswith("Attention")


def _forced(model, run, values, stretched):
    """The calls with the TPU path forced, at a length that its kernel takes, if the model can."""
    time, reason = np.shape(values[0])[1], ""
    if stretched is not None:
        try:
            return _record(model, run, stretched), []
        except Exception as error:  # a model can raise anything at a length it does not take
            reason = f": at {LENGTH} the model raised {type(error).__name__}"
    note = f"attention on TPU was checked with {time} positions only, {LENGTH} are needed{reason}"
    return _record(model, run, values), [note] * bool(time % LENGTH)


# Running ----------------------------------------------------------------------------------


def _record(model, run, values, modes=MODES, forced=True):
    """Run the model and list its calls of `dot_product_attention`.

    A call returns the dense attention that it asks for. With `forced` the TPU path also runs, on
    random values of unit scale, and its output is compared.
    """
    import jax
    from keras.src.backend.jax import nn

    original, stack, calls = nn.dot_product_attention, [], []

    def see(layer, call, _):
        stack.append(layer)
        try:
            return call()
        finally:
            stack.pop()

    def attention(query, key, value, bias=None, mask=None, scale=None, is_causal=False, **others):
        asked = {"bias": bias, "mask": mask, "scale": scale, "is_causal": is_causal}
        call = types.SimpleNamespace(
            layer=stack[-1] if stack else model,
            mode=mode,
            flash_attention=others.get("flash_attention"),
            cap=others.get("attn_logits_soft_cap"),
            **asked,
        )
        calls.append(call)
        if forced:
            rng = np.random.default_rng(len(calls))
            units = [rng.normal(size=x.shape).astype("float32") for x in (query, key, value)]
            tensors = [ops.cast(x, query.dtype) for x in units]
            with _as_on_tpu(nn, jax, call):
                output = original(*tensors, **asked, **others)
            compare = functools.partial(_compare, call, [ops.convert_to_numpy(x) for x in units])
            jax.debug.callback(compare, output, bias, mask)
        return original(query, key, value, **asked, **{**others, "flash_attention": False})

    nn.dot_product_attention = attention
    try:
        with watching(see):
            for mode in modes:
                (jax.jit(run) if mode == "compiled" else run)(values)
                jax.effects_barrier()
    finally:
        nn.dot_product_attention = original
    return calls


class _Instead:
    """A module with some of its names replaced."""

    def __init__(self, module, **names):
        self.__dict__.update(names, _module=module)

    def __getattr__(self, name):
        return getattr(self._module, name)


@contextlib.contextmanager
def _as_on_tpu(nn, jax, call):
    """A context in which Keras's attention takes the TPU path, and its kernel is interpreted.

    Sets on `call` whether the kernel was made (`splash`) and, if it raised and Keras computed
    dense attention instead, its message (`error`).
    """
    saved = {name: getattr(nn, name) for name in ("jax", "splash_attention_kernel", "logging")}
    call.splash, call.error = False, ""

    def make(**kwargs):
        call.splash = True
        return saved["splash_attention_kernel"].make_splash_mha(**kwargs, interpret=True)

    def failed(*_):
        call.error = str(sys.exc_info()[1]).partition("\n")[0]

    nn.jax = _Instead(jax, devices=lambda: [types.SimpleNamespace(platform="tpu")])
    nn.splash_attention_kernel = _Instead(saved["splash_attention_kernel"], make_splash_mha=make)
    nn.logging = _Instead(saved["logging"], exception=failed)
    try:
        yield
    finally:
        for name, value in saved.items():
            setattr(nn, name, value)


# Comparing --------------------------------------------------------------------------------


def _compare(call, units, output, bias, mask):
    """Set on `call` by how much the output differs from what was asked, and what was computed."""
    tolerance = TOLERANCE.get(output.dtype.name, 1e-3)
    output = np.asarray(output, "float64")
    visible = _asked_mask(call, units, mask)
    sees = visible.any(-1).swapaxes(1, 2)[
        ..., None
    ]  # queries that see no key have arbitrary outputs
    scale = units[0].shape[-1] ** -0.5 if call.scale is None else call.scale
    bias = None if bias is None else np.asarray(bias, "float64")

    def difference(visible, scale, bias, cap):
        change = np.abs(_dense(*units, visible, scale, bias, cap) - output)
        return float(np.where(sees, change, 0).max())

    call.difference = difference(visible, scale, bias, call.cap)
    if call.difference <= tolerance:
        call.difference, call.runs = 0.0, "as asked"
        return
    shape = visible.shape[-2:]
    ways = [
        {
            "the mask asked for": visible,
            "causal": np.tril(np.ones(shape, bool))[None, None],
            "example 0's mask for all": visible[:1, :1],
            "no mask": np.ones((1, 1, *shape), bool),
        },
        {"": scale, "unscaled": 1.0},
        {"": bias, "without its bias": None},
        {"": call.cap, "without its soft cap": None},
    ]
    call.runs = "another attention"
    # The explanation with the fewest deviations comes first.
    for names in sorted(itertools.product(*ways), key=lambda names: sum(map(bool, names[1:]))):
        if difference(*(way[name] for way, name in zip(ways, names, strict=True))) <= tolerance:
            call.runs = ", ".join(filter(None, names))
            return


def _asked_mask(call, units, mask):
    """Booleans [batch or 1, heads or 1, query_time, key_time]."""
    time = units[0].shape[1], units[1].shape[1]
    visible = np.ones((1, 1, *time), bool)
    if mask is not None:
        mask = np.asarray(mask).astype(bool)
        visible = visible & (mask[:, None] if mask.ndim == 3 else mask)
    return visible & np.tril(np.ones(time, bool)) if call.is_causal else visible


def _dense(query, key, value, visible, scale, bias, cap):
    """Attention in float64; layouts as in `keras.ops.dot_product_attention`."""
    query, key, value = (x.astype("float64") for x in (query, key, value))
    key, value = (np.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) * scale
    scores = scores if bias is None else scores + bias
    scores = scores if cap is None else cap * np.tanh(scores / cap)
    scores = np.where(visible, scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)


# Reporting --------------------------------------------------------------------------------


def _summary(path, layer, calls):
    asked = "; ".join(dict.fromkeys(_asked(call) for call in calls))
    return {
        "path": path,
        "class": type(layer).__name__,
        "asked": asked,
        "tpu": _by_mode(calls, _verdict) if calls else NEVER,
    }


def _asked(call):
    mask = [*["a mask"] * (call.mask is not None), *["causal"] * bool(call.is_causal)]
    bias = ["a bias"] * (call.bias is not None)
    kernel = {None: "any kernel", False: "no flash kernel"}.get(
        call.flash_attention, "flash kernel"
    )
    return ", ".join([" and ".join(mask) or "no mask", *bias, kernel])


def _verdict(call):
    if call.splash and not call.error:
        return call.runs + " (splash)"
    return call.runs + (f" (dense, since {call.error.rstrip('.')})" if call.error else " (dense)")


def _by_mode(calls, describe):
    """`compiled: …; eager: …`, or the text alone if both are the same."""
    said = {mode: [describe(call) for call in calls if call.mode == mode] for mode in MODES}
    said = {mode: "; ".join(dict.fromkeys(all_)) for mode, all_ in said.items() if all_}
    if len(said) == 2 and len(set(said.values())) == 1:
        return said["eager"]
    return "; ".join(f"{mode}: {what}" for mode, what in said.items())


def _detail(layer, wrong):
    asked = "; ".join(dict.fromkeys(_asked(call) for call in wrong))
    ran = _by_mode(wrong, lambda call: call.runs)
    difference = max(call.difference for call in wrong)
    keras_layers = keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention
    if isinstance(layer, keras_layers):
        remedy = "call keras.config.disable_flash_attention() before the model is made"
    else:
        remedy = "pass flash_attention=False to keras.ops.dot_product_attention"
    return (
        f"asked for {asked}; JAX on TPU runs {ran} at lengths that {LENGTH} divides; outputs "
        f"differ by up to {difference:.2g} for inputs of unit scale. Remedy: {remedy}"
    )
