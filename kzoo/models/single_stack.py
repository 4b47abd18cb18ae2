"""The backbone of GPT, UniLM, BERT and mixed-direction BERT: one stack of blocks."""

from typing import Any

import keras

from kzoo.models.stack import ARGUMENTS, Backbone, Stack, token_input


@keras.saving.register_keras_serializable(package="kzoo")
class SingleStackBackbone(Backbone):
    __doc__ = f"""Token ids to hidden states through one stack of blocks.

    Variables, shapes and initial values depend on neither `mask` nor `mechanism`.

    Args:
{ARGUMENTS}

    Inputs:
        A dict of integers [batch, time]: `token_ids`; `padding_mask` (0 padding, k the k-th
        document of the example); exactly when the mask contains prefix, `source_mask` (1 source);
        and exactly when there are segment embeddings, `segment_ids`.

    Returns:
        Floats [batch, time, hidden_dim].

    Example:
        >>> backbone = SingleStackBackbone(
        ...     num_layers=2, num_heads=4, hidden_dim=64, intermediate_dim=256,
        ...     max_sequence_length=64, mask="half_heads")
        >>> ids = np.zeros((1, 10), "int32")
        >>> backbone({{"token_ids": ids, "padding_mask": ids + 1}}).shape
        (1, 10, 64)
    """

    stack_name = "single"  # the config's `stack`

    def assemble(self, config: Any, embeddings: Any, dtype: Any, remat: str) -> Any:
        mask = config.mask
        stack = Stack(config, mask, dtype, remat=remat)
        names = ["token_ids", "padding_mask", *["source_mask"] * mask.needs_source]
        names += ["segment_ids"] * (config.num_segments > 0)
        inputs = {name: token_input(name) for name in names}
        call = {name: inputs[name] for name in ("padding_mask", "source_mask") if name in inputs}
        x = embeddings(inputs["token_ids"], inputs["padding_mask"], inputs.get("segment_ids"))
        return inputs, stack(x, **call), {"stacks": {"": stack}, "transformer_layers": stack.blocks}
