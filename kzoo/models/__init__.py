"""keras-hub backbones and tasks."""

from kzoo.models.encoder_decoder import EncoderDecoderBackbone
from kzoo.models.preprocessing import (
    ByteTokenizer,
    CausalLMPreprocessor,
    MaskedLMPreprocessor,
    Seq2SeqLMPreprocessor,
)
from kzoo.models.single_stack import SingleStackBackbone
from kzoo.models.tasks import CausalLM, MaskedLM, Seq2SeqLM

__all__ = [
    "ByteTokenizer",
    "CausalLM",
    "CausalLMPreprocessor",
    "EncoderDecoderBackbone",
    "MaskedLM",
    "MaskedLMPreprocessor",
    "Seq2SeqLM",
    "Seq2SeqLMPreprocessor",
    "SingleStackBackbone",
]
