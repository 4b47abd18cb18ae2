"""keras-hub backbones and tasks."""

import kzoo.load_keras_hub  # noqa: F401
from kzoo.models.beams import BeamSampler
from kzoo.models.classifier import TextClassifier
from kzoo.models.encoder_decoder import EncoderDecoderBackbone
from kzoo.models.preprocessing import (
    CausalLMPreprocessor,
    MaskedLMPreprocessor,
    Seq2SeqLMPreprocessor,
    TextClassifierPreprocessor,
)
from kzoo.models.single_stack import SingleStackBackbone
from kzoo.models.tasks import CausalLM, MaskedLM, Seq2SeqLM
from kzoo.models.tokenizer_bytes import ByteTokenizer
from kzoo.models.tokenizer_file import FileTokenizer

__all__ = [
    "BeamSampler",
    "ByteTokenizer",
    "CausalLM",
    "CausalLMPreprocessor",
    "EncoderDecoderBackbone",
    "FileTokenizer",
    "MaskedLM",
    "MaskedLMPreprocessor",
    "Seq2SeqLM",
    "Seq2SeqLMPreprocessor",
    "SingleStackBackbone",
    "TextClassifier",
    "TextClassifierPreprocessor",
]
