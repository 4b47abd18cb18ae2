"""Folders on the Hugging Face Hub."""

from pathlib import Path

from kzoo.convert.tensors import PYTORCH, SAFETENSORS
from kzoo.convert.tokenizers import ADDED, BYTE_PAIRS, SENTENCE_PIECES, WORD_PIECES
from kzoo.errors import InputError

PREFIX = "hf://"
_CONFIGS: tuple[str, ...] = ("config.json", "generation_config.json", "tokenizer.json")
_CONFIGS += ("tokenizer_config.json", "special_tokens_map.json")
_VOCABULARIES = (ADDED, *WORD_PIECES, *sum(BYTE_PAIRS, ()), *SENTENCE_PIECES)


def download(handle):
    """The folder of a handle, `"hf://ORG/NAME"` or `"hf://ORG/NAME@REVISION"`, on this machine.

    Files that unpickle are fetched only where there are no safetensors.

    Raises:
        InputError: if it cannot be had, with the reason.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(
            f"hf:// needs a package: pip install huggingface_hub. Received: {handle}"
        ) from error
    name, _, revision = handle.removeprefix(PREFIX).partition("@")

    def fetch(weights):
        stem, _, suffix = weights.rpartition(".")
        patterns = [weights, f"{weights}.index.json", f"{stem}-*-of-*.{suffix}"]
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=[*_CONFIGS, *_VOCABULARIES, *patterns],
            )
        )

    try:
        directory = fetch(SAFETENSORS)
        if not any(directory.glob("*.safetensors")):
            directory = fetch(PYTORCH)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"no such model, or no way there ({reason}). Received: {handle}"
        ) from error
    return directory
