"""keras-hub backbones and tasks."""

from kzoo.models.preprocessing import ByteTokenizer, CausalLMPreprocessor, MaskedLMPreprocessor
from kzoo.models.single_stack import SingleStackBackbone
from kzoo.models.tasks import CausalLM, MaskedLM

__all__ = [
    "ByteTokenizer",
    "CausalLM",
    "CausalLMPreprocessor",
    "MaskedLM",
    "MaskedLMPreprocessor",
    "SingleStackBackbone",
]
