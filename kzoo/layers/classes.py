"""From hidden states to the logits of classes."""

from typing import Any

import keras
from keras import ops

from kzoo.errors import unknown
from kzoo.layers.arguments import check
from kzoo.layers.initializers import SeededNormal, derive_seed
from kzoo.precision import float32_products
from kzoo.typing import Shape, Tensor

TOKENS = ("first", "last")


@keras.saving.register_keras_serializable(package="kzoo")
class ClassHead(keras.layers.Layer):
    """The state of one token of each text, to float32 logits of classes.

    Args:
        num_classes: an integer.
        token: whose state, of those that are not padding: `"first"` (Devlin et al. 2019,
            arXiv:1810.04805, section 3.2) or `"last"` (Radford et al. 2018, section 3.2).
        pooler: a layer that the state goes through, [batch, hidden_dim] to the same; or None.
        seed: integer from which the initial values derive.

    Call arguments:
        hidden: floats [batch, time, hidden_dim].
        padding_mask: integers [batch, time], 0 at padding.

    Returns:
        float32 [batch, num_classes].

    Raises:
        InputError: for another `token`.

    Example:
        >>> hidden, padding_mask = np.ones((2, 10, 64)), np.ones((2, 10), int)
        >>> ClassHead(3, "last")(hidden, padding_mask).shape
        (2, 3)
    """

    def __init__(
        self,
        num_classes: int,
        token: str = "first",
        pooler: Any = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if token not in TOKENS:
            raise unknown("token of a ClassHead", token, TOKENS)
        check(num_classes=num_classes, seed=seed)
        self.num_classes = num_classes
        self.token = token
        self.pooler = pooler
        self.seed = seed

    def build(self, hidden_shape: Shape, padding_mask_shape: Shape | None = None) -> None:
        width = hidden_shape[-1]
        draw = SeededNormal(width**-0.5, derive_seed(self.seed, "kernel"))
        self.kernel = self.add_weight(
            name="kernel", shape=(width, self.num_classes), initializer=draw
        )
        self.bias = self.add_weight(name="bias", shape=(self.num_classes,), initializer="zeros")

    def compute_output_spec(self, hidden: Tensor, padding_mask: Tensor) -> Any:
        return keras.KerasTensor((hidden.shape[0], self.num_classes), dtype="float32")

    def call(self, hidden: Tensor, padding_mask: Tensor) -> Tensor:
        real = ops.cast(padding_mask != 0, "int32")
        if self.token == "first":
            at = ops.argmax(real, axis=1)
        else:
            at = ops.max(real * ops.arange(ops.shape(real)[1], dtype="int32"), axis=1)
        state = ops.take_along_axis(hidden, ops.cast(at, "int32")[:, None, None], axis=1)[:, 0]
        if self.pooler is not None:
            state = self.pooler(state)
        with float32_products(state.dtype):
            logits = ops.matmul(ops.cast(state, self.kernel.dtype), self.kernel)
        return ops.cast(logits + self.bias, "float32")
