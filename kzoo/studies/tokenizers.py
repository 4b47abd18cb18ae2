"""The tokenizers of a study's arms: trained on the training part of each source, or read, once.

Two trainings of unigrams on the same text differ in their last digits, so that what was trained
goes to every process as it is, and stays in the study's folder, from which it is taken again.
"""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

from kzoo.data import tokenizer_spec
from kzoo.errors import InputError
from kzoo.files import whole_folder
from kzoo.tokenizer_json import FILE

FOLDER = "tokenizers"  # in a study's
CONFIG = "tokenizer_config.json"
SPLIT = "split_special_tokens"


def packed(study, source, arm):
    """The tokenizer of an arm on a source, as a string for `unpacked`; None for bytes."""
    if arm.tokenizer == tokenizer_spec.BYTES:
        return None
    if source in arm.tokenizers:
        return arm.tokenizers[source]
    given = json.dumps(study.given.get(source))
    return _made(json.dumps(arm.tokenizer), source, given, study.valid)


@functools.lru_cache(maxsize=16)
def unpacked(text):
    """The `kzoo.models.FileTokenizer` of what `packed` returned; None for None."""
    if text is None:
        return None
    from kzoo.models import FileTokenizer

    return FileTokenizer(**json.loads(text))


def settled(study, directory=None):
    """The study, each arm with its tokenizers: those of its folder, others read or trained.

    Args:
        study: a `Study`.
        directory: of its folder, if it has one.

    Raises:
        InputError: for a source that cannot be read.
    """

    def of(arm):
        if arm.tokenizer == tokenizer_spec.BYTES:
            return arm
        own = {source: _place(directory, source, arm) / FILE for source in arm.data}
        found = {
            source: _read(path) if directory and path.is_file() else packed(study, source, arm)
            for source, path in own.items()
        }
        return dataclasses.replace(arm, tokenizers=found)

    return dataclasses.replace(study, arms={label: of(arm) for label, arm in study.arms.items()})


def check(study, records):
    """`InputError` where finished runs had another tokenizer than the study has now."""
    for record in records:
        arm, then = study.arms.get(record["arm"]), record.get("facts", {}).get("tokenizer_sha256")
        if arm is None or then is None or record["data"] not in arm.data:
            continue
        text = packed(study, record["data"], arm)
        now = text and hashlib.sha256(json.loads(text)["content"].encode()).hexdigest()
        if now != then:
            raise InputError(
                f"a study goes on with the tokenizers of its folder, which the run "
                f"{record['run']!r} had; put {FOLDER} back, or name a new folder with --out. "
                f"Received: {tokenizer_spec.text(arm.tokenizer)}, trained anew or changed"
            )


def keep(study, directory):
    """Write the tokenizers of a study to its folder, where they are not yet."""
    for source, _, arm in study.runs():
        text, place = packed(study, source, arm), _place(directory, source, arm)
        if text is None or (place / FILE).is_file():
            continue
        made = json.loads(text)
        with whole_folder(place, last=FILE) as part:
            stated = {**made["special_tokens"], SPLIT: made[SPLIT]}
            config = json.dumps(stated, indent=2, ensure_ascii=False)
            (Path(part) / CONFIG).write_text(config, encoding="utf-8")
            (Path(part) / FILE).write_text(made["content"], encoding="utf-8")


def _place(directory, source, arm):
    """The folder, in a study's, of an arm's tokenizer on a source."""
    digest = hashlib.sha256(json.dumps([source, arm.tokenizer]).encode()).hexdigest()[:8]
    trained = not isinstance(arm.tokenizer, str)
    kind = tokenizer_spec.text(arm.tokenizer).replace(":", "-") if trained else "file"
    return Path(directory or "") / FOLDER / f"{kind}-{digest}"


@functools.lru_cache(maxsize=16)
def _made(spec, source, given, valid):
    return _read(tokenizer_spec.file(json.loads(spec), json.loads(given) or source, valid))


def _read(path):
    from kzoo.models.tokenizer_file import read_file

    tokenizer = read_file(path)
    fields = {"special_tokens": tokenizer.special_tokens, "content": tokenizer.content}
    return json.dumps({**fields, SPLIT: tokenizer.split_special_tokens}, sort_keys=True)
