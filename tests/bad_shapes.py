"""Calls the C++ past Python's checks, with right and wrong shapes: a process that may die of it.

    python tests/bad_shapes.py LIBRARY

Prints how many calls were right and how many were refused.
"""

import ctypes
import itertools
import sys

import jax
import numpy as np

NAMES = tuple(
    f"{name}_{way}" for name in ("softmax", "linear", "gated") for way in ("forward", "backward")
)


def arrays_of(name, batch, time, keys, heads, dim, value_dim, norms):
    """The shapes of a right call: of its arrays and of its results."""
    q, k = (batch, time, heads, dim), (batch, keys, heads, dim)
    v, out = (batch, keys, heads, value_dim), (batch, time, heads, value_dim)
    sums, matrix, vector = (batch, heads, time), (batch, heads, dim, value_dim), (batch, heads, dim)
    labels = [(batch, heads, time), (1, 1, time), (1, heads, keys), (batch, 1, keys)]
    if name == "softmax_forward":
        return [q, k, v, *labels], [out, sums]
    if name == "softmax_backward":
        return [q, k, v, *labels, out, sums, out], [q, k, v]
    if name.startswith("gated"):
        gates = (batch, time, heads)
        first = [q, q, out, gates, labels[1], labels[0], matrix]
        if name == "gated_forward":
            return first, [out, matrix]
        return [*first, out, matrix], [q, q, out, gates, matrix]
    q_norm = [q, q] if norms else []
    first = [q, q, out, labels[1], labels[0], matrix, vector]
    if name == "linear_forward":
        return [*first, *q_norm], [out, sums, matrix, vector]
    rest = [out, sums, out, matrix, vector, *q_norm]
    return [*first, *rest], [q, q, out, matrix, vector, *q_norm]


def integers(name):
    mechanism = name.partition("_")[0]
    return {"softmax": range(3, 7), "linear": range(3, 5), "gated": range(4, 6)}[mechanism]


def drawn(name, shapes, swapped=None):
    draw = np.random.default_rng(0)
    kinds = ["int32" if i in integers(name) else "float32" for i in range(len(shapes))]
    if swapped is not None:
        kinds[swapped] = "float64" if kinds[swapped] == "float32" else "float32"
    given = [
        draw.integers(0, 3, s) if k == "int32" else draw.random(s)
        for s, k in zip(shapes, kinds, strict=True)
    ]
    return [np.asarray(x, kind) for x, kind in zip(given, kinds, strict=True)]


def function(name, results, chunk, flags, **options):
    static = {} if name.startswith("softmax") else {"chunk": np.int64(chunk), "reverse": flags}
    results = [jax.ShapeDtypeStruct(shape, "float32") for shape in results]
    return lambda *given: jax.ffi.ffi_call(f"kzoo_{name}", results, **options)(*given, **static)


def kind_of(array):
    return str((array.dtype, array.shape))


def refused(name, calls):
    """Asserts that each of the calls of a name is refused; how many.

    One program holds them all, and an index says which one runs: programs take longer to compile
    than to run. Calls share what they are given, since each run is handed all of it.
    """
    drawn_ones = [drawn(name, shapes, *swapped) for shapes, *_, swapped in calls]
    given = jax.device_put({kind_of(x): x for arrays in drawn_ones for x in arrays})
    functions = [function(name, *rest[:3], has_side_effect=True) for _, *rest in calls]

    @jax.jit
    def run(which, given):
        def branch(i):
            return lambda given: (functions[i](*(given[kind_of(x)] for x in drawn_ones[i])), 0)[1]

        return jax.lax.switch(which, [branch(i) for i in range(len(calls))], given)

    for which, call in enumerate(calls):
        try:
            jax.block_until_ready(run(which, given))
        except jax.errors.JaxRuntimeError as error:
            assert "INVALID_ARGUMENT" in str(error), (name, call, error)
        else:
            raise AssertionError(f"{name} takes {call}")
    return len(calls)


def run_all(name, calls):
    """All the calls of a name in one program: programs take longer to compile than to run."""
    functions = [function(name, *rest) for _, *rest in calls]
    given = [drawn(name, shapes) for shapes, *_ in calls]
    jax.block_until_ready(
        jax.jit(lambda given: [f(*x) for f, x in zip(functions, given, strict=True)])(given)
    )


def changed(shapes):
    """Every array with one axis shorter, taken away or added."""
    for i, shape in enumerate(shapes):
        for axis in range(len(shape)):
            other = list(shape)
            other[axis] -= 1
            yield [*shapes[:i], tuple(other), *shapes[i + 1 :]]
        yield [*shapes[:i], shape[1:], *shapes[i + 1 :]]
        yield [*shapes[:i], (*shape, 1), *shapes[i + 1 :]]


def main(path):
    jax.config.update("jax_enable_x64", True)
    library = ctypes.CDLL(path)
    for name in NAMES:
        capsule = jax.ffi.pycapsule(getattr(library, f"kzoo_{name}"))
        jax.ffi.register_ffi_target(f"kzoo_{name}", capsule, platform="cpu")
    right = wrong_ones = 0
    # Parts of a block and of a chunk, several, none.
    sizes = [
        (2, 3, 5, 2, 16, 32),
        (1, 70, 130, 3, 32, 16),
        (2, 0, 5, 2, 16, 16),
        (0, 4, 4, 2, 16, 16),
    ]
    sizes += [(2, 5, 0, 2, 16, 16), (1, 0, 0, 1, 16, 16), (2, 3, 3, 0, 16, 16)]
    for name in NAMES:
        calls = []
        for size, norms, chunk in itertools.product(sizes, (False, True), (1, 7, 64)):
            if norms and not name.startswith("linear"):
                continue
            if name.startswith("softmax") and chunk > 1:
                continue
            shapes, results = arrays_of(name, *size, norms)
            calls.append((shapes, results, chunk, np.arange(size[3], dtype="int32") % 2))
        run_all(name, calls)
        right += len(calls)
    size = sizes[0]
    for name, norms in itertools.product(NAMES, (False, True)):
        if norms and not name.startswith("linear"):
            continue
        shapes, results = arrays_of(name, *size, norms)
        flags = np.zeros(size[3], "int32")
        wrong = [(other, results, 2, flags) for other in changed(shapes)]
        wrong += [(shapes, other, 2, flags) for other in changed(results)]
        # A label of another batch or other heads may be right.
        wrong = [x for x in wrong if x[1] != results or not _right(name, x[0], shapes, size)]
        wrong += [(shapes, results, 2, flags, i) for i in range(len(shapes))]
        if not name.startswith("softmax"):
            chunks = (0, -1, -(2**62), 1025, 2**31, 2**32 + 1, 2**62)
            wrong += [(shapes, results, chunk, flags) for chunk in chunks]
            wrong += [(shapes, results, 2, np.zeros(n, "int32")) for n in (0, 1, 3)]
            wrong += [(shapes + shapes[:1], results, 2, flags), (shapes[:-1], results, 2, flags)]
        for dims in ((8, 16), (16, 24), (0, 16), (16, 0)):
            odd = arrays_of(name, *size[:4], *dims, norms)
            if any(0 not in shape for shape in odd[1]):  # XLA calls nothing for empty results
                wrong.append((*odd, 2, flags))
        wrong_ones += refused(name, [(*call[:4], call[4:]) for call in wrong])
    print(right, "right,", wrong_ones, "refused")


def _right(name, received, shapes, size):
    pairs = zip(received, shapes, strict=True)
    return all(
        a == b or (i in integers(name) and _fits(a, size) and a[2] == b[2])
        for i, (a, b) in enumerate(pairs)
    )


def _fits(shape, size):
    """Whether a shape is that of a label: 1 may stand for batch and heads."""
    return len(shape) == 3 and shape[0] in (1, size[0]) and shape[1] in (1, size[3])


if __name__ == "__main__":
    main(sys.argv[1])
