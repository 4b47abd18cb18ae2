"""One model on many devices: which part of each variable a device holds, through Keras.

Devices form a mesh. Its axis "data" splits the rows of a batch; its axis "model" splits
projections and the vocabulary, so that a device computes some of the heads and some of the hidden
units of each layer. XLA inserts the communication that follows. No layout changes a result.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3 ("model"); Rajbhandari et al. 2020,
arXiv:1910.02054 (parameters and the optimizer's state split over "data").
"""

import logging
import re

import keras

log = logging.getLogger("kzoo")

DATA, MODEL = "data", "model"

# The end of a variable's path, and the axes of its dimensions; "data" only when parameters are
# split over it too. What is not here is whole on every device: norms, the biases of what is added
# to the residual stream, random states.
_RULES = {
    # Queries, keys and values come out split by heads, so nothing is exchanged until the output
    # projection sums over them; likewise the hidden units of the feed-forward network.
    r"(cross_)?attention/(query|key|value)/kernel": (DATA, MODEL),
    r"(cross_)?attention/(query|key|value)/bias": (MODEL,),
    r"(cross_)?attention/(query|value)/lora_kernel_b": (None, MODEL),
    r"(cross_)?attention/feature_map_\w+": (MODEL, None),  # [heads * head_dim, features]
    r"(cross_)?attention/output_dense/kernel": (MODEL, DATA),
    r"(\w+_)?relative_bias/embeddings": (None, MODEL),  # [buckets, heads]
    r"feed_forward/(gate|intermediate)/kernel": (DATA, MODEL),
    r"feed_forward/(gate|intermediate)/bias": (MODEL,),
    r"feed_forward/output_dense/kernel": (MODEL, DATA),
    # By vocabulary: then the logits, often the largest activations, come out split too.
    r"token_embedding/embeddings": (MODEL, DATA),
    r"token_embedding/reverse_embeddings": (DATA, MODEL),
    r"head/bias": (MODEL,),
    r"(position|segment)_embedding/embeddings": (None, DATA),
    r"(head/dense|pooler)/kernel": (DATA, None),
}
_ANYWHERE = r"(.*/)?"  # before a rule


def layout(path, shape, mesh, fsdp=False):
    """The mesh axis that splits each dimension of a variable.

    An axis that does not divide its dimension splits nothing there (GPT-2's vocabulary of 50257
    is whole on every device). Heads and hidden units always divide: a backbone that is built for
    such a mesh checks it (`kzoo.config.check_split`).

    Args:
        path: the variable's, such as `"block_0/attention/query/kernel"`.
        shape: its shape.
        mesh: the sizes of the mesh by axis, such as `{"data": 4, "model": 2}`.
        fsdp: split parameters over "data" too.

    Returns:
        A tuple as long as the shape, of axis names and None.

    Example:
        >>> layout("block_0/attention/query/kernel", (64, 64), {"data": 4, "model": 2})
        (None, 'model')
    """
    pairs = zip(_wanted(path, shape, mesh, fsdp), shape, strict=True)
    return tuple(None if axis is None or size % mesh[axis] else axis for axis, size in pairs)


def layout_map(device_mesh, fsdp=False):
    """The layouts of all families' variables by path, as Keras takes them.

    Keras shows a map no shapes, so that it holds where every dimension divides; `layout`, which
    `distribution` goes by, sees shapes.

    Args:
        device_mesh: a `keras.distribution.DeviceMesh` with the axes "data", "model" or both; its
            devices may be names of devices that are not there.
        fsdp: split parameters, and so the optimizer's state, over "data" too.

    Returns:
        A `keras.distribution.LayoutMap`.

    Example:
        >>> names = [f"tpu:{i}" for i in range(8)]
        >>> mesh = keras.distribution.DeviceMesh((4, 2), ["data", "model"], names)
        >>> layout_map(mesh)["block_0/feed_forward/output_dense/kernel"].axes
        ('model', None)
    """
    layouts = keras.distribution.LayoutMap(device_mesh)
    for rule, axes in _RULES.items():
        layouts[_ANYWHERE + rule] = _of_mesh(axes, device_mesh.axis_names, fsdp)
    return layouts


def distribution(device_mesh, fsdp=False):
    """The Keras distribution over a mesh, without making it the current one.

    Args:
        device_mesh, fsdp: as in `layout_map`.

    Returns:
        A `keras.distribution.DataParallel` where variables are whole on every device, else a
        `keras.distribution.ModelParallel`. `get_variable_layout(variable).axes` is the layout of
        a variable, shapes considered.
    """
    if not fsdp and MODEL not in device_mesh.axis_names:
        return keras.distribution.DataParallel(device_mesh, auto_shard_dataset=False)
    return _ModelParallel(device_mesh, fsdp)


class _ModelParallel(keras.distribution.ModelParallel):
    """Lays variables out by path and shape; Keras's own goes by path alone."""

    def __init__(self, device_mesh, fsdp):
        layouts = layout_map(device_mesh, fsdp)
        super().__init__(layout_map=layouts, batch_dim_name=DATA, auto_shard_dataset=False)
        self.fsdp = fsdp
        self._told = set()

    def get_variable_layout(self, variable):
        given = getattr(variable, "_layout", None)
        if given is not None:  # an optimizer's variable, which has its parameter's
            return given
        mesh = dict(zip(self.device_mesh.axis_names, self.device_mesh.shape, strict=True))
        axes = layout(variable.path, variable.shape, mesh, self.fsdp)
        wanted = _wanted(variable.path, variable.shape, mesh, self.fsdp)
        for axis, size in zip(wanted, variable.shape, strict=True):
            if axis not in axes and (axis, size) not in self._told:
                self._told.add((axis, size))
                log.warning(
                    "%s, and others like it: a dimension of %d is not split, as it does not "
                    "divide into %d along the mesh axis %r",
                    *(variable.path, size, mesh[axis], axis),
                )
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def _wanted(path, shape, mesh, fsdp):
    """`layout`, if every dimension divided."""
    for rule, axes in _RULES.items():
        if len(axes) == len(shape) and re.fullmatch(_ANYWHERE + rule, path):
            return _of_mesh(axes, mesh, fsdp)
    return (None,) * len(shape)


def _of_mesh(axes, names, fsdp):
    """`axes` without those that the mesh does not have, and without "data" unless asked for."""
    return tuple(axis if axis in names and (fsdp or axis != DATA) else None for axis in axes)
