"""The backbone of T5 and its variants: an encoder, and a decoder with cross-attention to it."""

from typing import Any

import keras

from kzoo import masks
from kzoo.config import check_two_stacks
from kzoo.models.stack import ARGUMENTS, Backbone, Stack, token_input
from kzoo.typing import Tensor


@keras.saving.register_keras_serializable(package="kzoo")
class EncoderDecoderBackbone(Backbone):
    __doc__ = f"""Source and target ids to hidden states, each through a stack of its own.

    `mask` is the encoder's; the decoder is causal and attends to the whole encoded source. That
    cross-attention has no positions. Both stacks embed tokens, and positions, with the same tables.

    Args:
{ARGUMENTS}
        shared: whether the decoder uses the encoder's norms, projections and feed-forward
            networks (Raffel et al. 2020, arXiv:1910.10683, section 3.2.2); its cross-attention
            is its own. With relative positions it uses the encoder's table too.

    Inputs:
        A dict of integers [batch, time]: `encoder_token_ids`, `encoder_padding_mask`,
        `decoder_token_ids`, `decoder_padding_mask`; the masks are 0 for padding and k for the k-th
        document of the row, whose target attends to its own source alone. The two times may differ.

    Returns:
        A dict of floats [batch, time, hidden_dim]: `encoder_sequence_output`,
        `decoder_sequence_output`.

    Example:
        >>> backbone = EncoderDecoderBackbone(
        ...     num_layers=2, num_heads=4, hidden_dim=64, intermediate_dim=256,
        ...     max_sequence_length=64)
    """

    def __init__(self, *, shared: bool = False, **kwargs: Any) -> None:
        self._shared = shared
        super().__init__(**kwargs)
        self.shared = shared

    def assemble(self, config: Any, embeddings: Any, dtype: Any, remat: str) -> Any:
        check_two_stacks(config, self._shared)
        encoder = Stack(config, config.mask, dtype, "encoder_", remat=remat)
        names = ("encoder_token_ids", "encoder_padding_mask")
        inputs = {name: token_input(name) for name in names}
        ids, padding_mask = inputs.values()
        encoded = encoder(embeddings(ids, padding_mask), padding_mask=padding_mask)
        decoder = Stack(
            config,
            masks.causal(),
            dtype,
            "decoder_",
            depth=config.decoder_depth,
            cross_attention=True,
            bidirectional=False,
            remat=remat,
            shares=encoder if self._shared else None,
        )
        names = ("decoder_token_ids", "decoder_padding_mask")
        inputs |= {name: token_input(name) for name in names}
        decoded = decoder(
            embeddings(inputs["decoder_token_ids"], inputs["decoder_padding_mask"]),
            padding_mask=inputs["decoder_padding_mask"],
            encoded=encoded,
            encoder_padding_mask=padding_mask,
        )
        outputs = {"encoder_sequence_output": encoded, "decoder_sequence_output": decoded}
        return inputs, outputs, {"stacks": {"encoder": encoder, "decoder": decoder}}

    def encode(self, token_ids: Tensor, padding_mask: Tensor) -> Tensor:
        """The encoder's output for the source's tokens: floats [batch, time, hidden_dim]."""
        x = self.embeddings(token_ids, padding_mask)
        return self.stacks["encoder"](x, padding_mask=padding_mask)

    @property
    def stack_name(self) -> str:
        """The config's `stack`."""
        return "encoder_decoder_shared" if self.shared else "encoder_decoder"

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "shared": self.shared}
