"""Data sets of TensorFlow Datasets as sources."""

import contextlib
import difflib
import hashlib
import os
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from kzoo.data.sources import files
from kzoo.data.sources.base import Source, register
from kzoo.errors import InputError


@register
class Tfds(Source):
    """`"tfds:NAME"`: the `text` feature of every example of a TFDS data set, all splits together.

    A data set that is one text file is read from TFDS's manual folder when it is there. Any
    other is read where TFDS keeps prepared data (`TFDS_DATA_DIR`, else
    `~/tensorflow_datasets`), and prepared first if need be, from the manual folder or the
    network. Reading either needs no TensorFlow; most of TFDS's builders do, to prepare.

    Attributes:
        dataset: its name in TFDS.
    """

    dataset: str

    name = "tfds"

    def read(self) -> list[Any]:
        return _documents(f"tfds:{self.dataset}")

    @classmethod
    def form(cls) -> str:
        return "tfds:NAME"


def _documents(name):
    """The texts of the source `name`, `"tfds:NAME"`: a list of bytes."""
    import tensorflow_datasets as tfds

    folder = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    manual = folder / "downloads" / "manual"
    try:
        builder = tfds.builder(name.removeprefix("tfds:"), data_dir=folder)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        known = [f"tfds:{known}" for known in tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "tfds.list_builders() lists them."
        raise InputError(f"unknown TFDS data set; {hint} Received: {name!r}") from error
    if "text" not in builder.info.features:
        raise InputError(
            "the data set has no feature 'text'. "
            f"Received: {name!r}, with {', '.join(builder.info.features)}"
        )
    urls = builder.url_infos or {}
    checksums = {info.filename: info.checksum for info in urls.values()}
    missing = [file for file in checksums if not (manual / file).is_file()]
    put = f"put {', '.join(missing or checksums or ['its files'])} in {manual}"
    if not missing and len(checksums) == 1 and (text_file := [*checksums][0]).endswith(".txt"):
        (text,) = files.read(manual / text_file)
        if hashlib.sha256(text).hexdigest() != checksums[text_file]:
            raise InputError(
                f"not the file that TFDS knows under this name. Received: {manual / text_file}"
            )
        return [text]
    if not builder.is_prepared() and missing and not _reachable(next(iter(urls))):
        raise InputError(f"no network and no prepared data: {put}. Received: {name!r}")
    config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # TFDS prints its progress
            builder.download_and_prepare(download_config=config, file_format="array_record")
            splits = [_examples(builder, split) for split in builder.info.splits]
    except Exception as error:  # builders run code of many authors
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            f"TFDS cannot prepare or read this data set here ({reason}); mend that, or {put}. "
            f"Received: {name!r}"
        ) from error
    if all(len(split) == 1 for split in splits):  # one text, cut into splits
        return [b"".join(text for (text,) in splits)]
    return [text for split in splits for text in split]


def _examples(builder, split):
    """The texts of a prepared split, in order."""
    if builder.info.file_format.value == "array_record":
        examples = builder.as_data_source(split)
    else:  # prepared earlier in TFDS's default format, which needs TensorFlow
        import tensorflow_datasets as tfds

        examples = tfds.as_numpy(builder.as_dataset(split))
    return [example["text"] for example in examples]


def _reachable(url):
    """Whether the server of `url` answers within two seconds."""
    answered = threading.Event()

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=2)
        except urllib.error.HTTPError:
            pass  # an answer, if not a kind one
        except OSError:
            return
        answered.set()

    # A thread, since no timeout of urlopen covers looking up the name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2)
    return answered.is_set()
