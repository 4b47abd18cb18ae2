"""Names that arguments of layers can have, and those of a mesh's axes, known without Keras."""

from typing import NamedTuple


class Activation(NamedTuple):
    """The activation of a feed-forward network.

    Attributes:
        function: its name among the functions of `kzoo.layers.feed_forward`.
        gated: whether the function of one projection multiplies a second one.
    """

    function: str
    gated: bool = False


ACTIVATIONS = {
    "gelu": Activation("gelu"),
    "gelu_tanh": Activation("gelu_tanh"),
    "relu": Activation("relu"),
    "geglu": Activation("gelu", gated=True),
    "geglu_tanh": Activation("gelu_tanh", gated=True),
    "swiglu": Activation("silu", gated=True),
}
NORMALIZATIONS = {"layer_norm": 2, "rms_norm": 1}  # vectors of parameters: scale and offset
NORM_PLACEMENTS = ("pre", "post")
POSITIONS = ("none", "learned", "sinusoidal", "rotary", "relative")
INITIALIZATIONS = ("fan_in", "gpt2")
DATA, MODEL = "data", "model"  # the axes of a mesh of devices
