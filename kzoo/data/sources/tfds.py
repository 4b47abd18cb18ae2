"""Data sets of TensorFlow Datasets as sources."""

import contextlib
import difflib
import hashlib
import importlib.util
import logging
import os
import re
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from kzoo.data.sources import files, official, stored
from kzoo.data.sources.base import Source, register
from kzoo.data.sources.records import Records
from kzoo.errors import InputError, unknown

log = logging.getLogger("kzoo")

# The source and the target of data sets; None as the source: documents of running text. Of others,
# TFDS's supervised keys where they are two texts, else the feature `text`.
FEATURES: dict[str, tuple[str | None, str]] = {
    "c4": (None, "text"),
    "imdb_reviews": (None, "text"),  # the supervised target is a label
    "lm1b": (None, "text"),  # the supervised source is the target
    "tiny_shakespeare": (None, "text"),
    "wiki40b": (None, "text"),
    "wikipedia": (None, "text"),
    "cnn_dailymail": ("article", "highlights"),
    "gigaword": ("document", "summary"),
    "samsum": ("dialogue", "summary"),
    "xsum": ("document", "summary"),
    "ag_news_subset": ("description", "label"),
    "clinc_oos": ("text", "intent_name"),  # `intent` is its number
    "glue/cola": ("sentence", "label"),
    "glue/sst2": ("sentence", "label"),
    "wmt14_translate/de-en": ("de", "en"),
}
# Data sets that are one text file, and the part of its characters that TFDS trains on; the rest is
# halved. From the manual folder they are read as they are: nothing is prepared, without TensorFlow.
TEXT_FILES = {"tiny_shakespeare": 0.9}
SECONDS = 1.0  # that a server has to answer


@register
class Tfds(Source):
    """A TFDS data set, its official splits kept apart: `"tfds:glue/sst2"`.

    `"tfds:wmt14_translate/de-en:en:de"` names the features of sources and of targets, and
    `"tfds:glue/sst2:sentence"` that of texts; where none are named, a table of known data sets says
    them (`FEATURES`), then TFDS's supervised keys, if both are texts, then the feature `text`. A
    label is its name. A feature of texts alone is read as documents of running text.

    The splits `train`, `validation` and `test` are trained on, held out and held out again. Where
    there is no `validation`, a part of `train` is held out.

    It is read where TFDS keeps prepared data (`TFDS_DATA_DIR`, else `~/tensorflow_datasets`),
    and prepared first if need be, as ArrayRecord, from TFDS's manual folder or the network.
    Reading needs no TensorFlow; most of TFDS's builders do, to prepare.

    Attributes:
        dataset: its name in TFDS, with its config and version if need be.
        target: the feature of targets, or of texts.
        source: the feature of sources, or None for texts.
        train, valid, test: other splits, or parts of them, such as `"train[:10%]"`.
    """

    dataset: str
    target: str | None = None
    source: str | None = None
    train: str | None = None
    valid: str | None = None
    test: str | None = None

    name = "tfds"

    def __post_init__(self):
        for field in ("dataset", "target", "source", "train", "valid", "test"):
            value = getattr(self, field)
            if not isinstance(value, str) and (value is not None or field == "dataset"):
                raise InputError(f"{field} of a TFDS data set is a string. Received: {value!r:.60}")
        if self.source is not None and self.target is None:
            raise InputError(
                "a data set with a feature of sources has one of targets: source and target. "
                f"Received: source={self.source!r} alone"
            )

    @classmethod
    def of(cls, text: str) -> "Tfds":
        dataset, *features = text.split(":")
        if features and re.fullmatch(r"[\d*]+\.[\d*.]+", features[0]):
            dataset += f":{features.pop(0)}"
        if len(features) > 2:
            raise InputError(
                "a TFDS data set has a feature of sources and one of targets: "
                f"'tfds:NAME:SOURCE:TARGET'. Received: {f'tfds:{text}'!r:.120}"
            )
        return cls(dataset, *reversed(features))

    @classmethod
    def form(cls) -> str:
        return "tfds:NAME"

    def read(self) -> dict[str, Any]:
        builder = _builder(self.dataset)
        source, target = self._features(builder)
        asked = {part: getattr(self, part) for part in official.NAMES}
        if not any(asked.values()) and (parts := _text_file(builder)):
            return parts
        _prepare(builder, self.dataset)
        chosen = official.choose(builder.info.splits, f"tfds:{self.dataset}", **asked)
        parts = {}
        for part, split in chosen.items():
            records = _Split(builder, split, source, target)
            if part == "test" and self.test is None and records.unlabelled:
                log.info("tfds:%s: its test split has no labels and is not read", self.dataset)
                continue
            parts[part] = records
        return parts

    def _features(self, builder):
        """The features of the source (or None) and of the target."""
        features = builder.info.features
        if self.target is not None:
            for name in filter(None, (self.source, self.target)):
                if name not in features:
                    raise unknown(f"feature of 'tfds:{self.dataset}'", name, list(features))
                if not _is_text(features[name]) and _labels(features[name]) is None:
                    raise InputError(
                        "a source or target is a feature of text, or a label with names. "
                        f"Received: {name!r} of 'tfds:{self.dataset}', {features[name]!r:.80}"
                    )
            return self.source, self.target
        version = str(builder.version)
        full = builder.info.full_name.removesuffix(f"/{version}")
        if known := FEATURES.get(full, FEATURES.get(builder.name)):
            return known
        keys = builder.info.supervised_keys
        if keys and len(keys) == 2 and keys[0] != keys[1]:
            if all(isinstance(key, str) and _is_text(features[key]) for key in keys):
                return tuple(keys)
        if "text" in features and _is_text(features["text"]):
            return None, "text"
        raise InputError(
            "which features are source and target, or the text, is to be said: "
            f"'tfds:NAME:SOURCE:TARGET' or 'tfds:NAME:TEXT'. Received: 'tfds:{self.dataset}', "
            f"with {', '.join(features)}"
        )


class _Split(Records):
    """A split of a prepared data set, read by random access: `(source, target)` pairs of strings,
    or documents, bytes."""

    def __init__(self, builder, split, source, target):
        self._names = [name for name in (source, target) if name is not None]
        self._labels = [_labels(builder.info.features[name]) for name in self._names]
        self._held = _opened(builder, split)
        self.size = _size(builder, split)
        self._where = f"{builder.data_dir}, {split}"
        self.identity = (self._where, *self._names, *_state(builder, split))

    def __len__(self):
        return len(self._held)

    def __getitems__(self, indices):
        indices = [int(i) for i in indices]
        rows = self._held.__getitems__(indices)
        return [self._record(i, row) for i, row in zip(indices, rows, strict=True)]

    @property
    def unlabelled(self):
        """Whether the targets are labels that are not given, as of many test splits."""
        row = self._held.__getitems__([0])[0] if len(self) else {}
        return bool(self._labels[-1]) and row.get(self._names[-1], 0) < 0

    def _record(self, i, row):
        texts = [
            self._text(i, row[name]) if labels is None else _label(labels, int(row[name]))
            for name, labels in zip(self._names, self._labels, strict=True)
        ]
        if len(texts) == 2:
            return tuple(texts)
        return texts[0] if self._labels[0] else texts[0].encode()

    def _text(self, i, value):
        try:
            return value if isinstance(value, str) else bytes(value).decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"a text is UTF-8. Received: example {i} of {self._where}, whose byte "
                f"{error.start} is none"
            ) from error


def _is_text(feature):
    """Whether a feature is one text."""
    dtype = getattr(feature, "np_dtype", None)  # its `dtype` would load TensorFlow
    return getattr(feature, "shape", None) == () and getattr(dtype, "kind", "") in ("O", "S")


def _label(labels, number):
    """The name of a class; -1 stands for none, which is left out as an empty text is."""
    return "" if number < 0 else labels[number]


def _labels(feature):
    """The names of the classes of a label, or None: it is none."""
    return getattr(feature, "names", None)


# Finding, preparing and opening ------------------------------------------------------------------


def _builder(dataset):
    import tensorflow_datasets as tfds

    folder = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    try:
        return tfds.builder(dataset, data_dir=folder)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        known = tfds.list_builders(with_community_datasets=False)
        name, _, config = dataset.partition("/")
        if name in known:
            configs = list(tfds.builder_cls(name).builder_configs)
            raise unknown(f"config of 'tfds:{name}'", config, configs) from error
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean 'tfds:{near[0]}'?" if near else "tfds.list_builders() lists them."
        raise InputError(f"unknown TFDS data set; {hint} Received: 'tfds:{dataset}'") from error


def _manual(builder):
    """Where files that were downloaded by hand are looked for."""
    return Path(builder._data_dir_root) / "downloads" / "manual"


def _text_file(builder):
    """The parts of a data set that is one text file in the manual folder, or None."""
    urls = builder.url_infos or {}
    if builder.name not in TEXT_FILES or builder.is_prepared() or len(urls) != 1:
        return None
    (info,) = urls.values()
    file = _manual(builder) / info.filename
    if not file.is_file():
        return None
    (content,) = files.read(file)
    if hashlib.sha256(content).hexdigest() != info.checksum:
        raise InputError(f"not the file that TFDS knows under this name. Received: {file}")
    text = content.decode()
    first = int(len(text) * TEXT_FILES[builder.name])
    second = first + int((len(text) - first) * 0.5)
    cut = text[:first], text[first:second], text[second:]
    return {part: [one.encode()] for part, one in zip(official.NAMES, cut, strict=True)}


def _prepare(builder, dataset):
    """Prepares a data set that is not, or says what is missing; checks one that is."""
    import tensorflow_datasets as tfds

    if not builder.is_prepared():
        manual = _manual(builder)
        put = _check_preparable(builder, dataset, manual)
        config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # TFDS prints its progress
                builder.download_and_prepare(download_config=config, file_format="array_record")
        except Exception as error:  # builders run code of many authors
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(
                f"TFDS cannot prepare this data set here ({reason:.200}); mend that, or {put}. "
                f"Received: 'tfds:{dataset}'"
            ) from error
    shards = [file for split in builder.info.splits.values() for file in split.filepaths]
    missing = [file.name for file in shards if not file.exists()]
    if missing:
        raise InputError(
            f"the data set is prepared in part: {len(missing)} of {len(shards)} files are missing "
            f"in {builder.data_dir} ({missing[0]}); delete that folder, and it is prepared anew. "
            f"Received: 'tfds:{dataset}'"
        )


def _check_preparable(builder, dataset, manual):
    """`InputError` where a preparation cannot succeed; else what could be put where."""
    import tensorflow_datasets as tfds

    begun = sorted(Path(builder.data_dir).parent.glob("*incomplete*"))
    if begun:
        log.warning(
            "tfds:%s: an earlier preparation was interrupted; it begins anew, and %s can be "
            "deleted",
            *(dataset, ", ".join(map(str, begun))),
        )
    urls = {info.filename: url for url, info in (builder.url_infos or {}).items()}
    absent = [file for file in urls if not (manual / file).is_file()]
    some = ", ".join(absent[:3]) + ", …" * (len(absent) > 3)
    prepared = f"a copy prepared elsewhere at {builder.data_dir}"
    put = f"put {some} in {manual}, or {prepared}" if absent else f"put {prepared}"
    needs = []
    by_beam = isinstance(builder, tfds.core.BeamBasedBuilder)
    if by_beam and not _installed("apache_beam"):
        needs.append("it is prepared by Apache Beam (pip install apache-beam)")
    if (absent or by_beam and not urls) and not _reachable(next(iter(urls.values()), STORE)):
        needs.insert(0, "no network and no prepared data")
    if needs:
        raise InputError(f"{'; '.join(needs)}: {put}. Received: 'tfds:{dataset}'")
    return put


STORE = "https://storage.googleapis.com"  # where TFDS keeps what has no address of its own


def _installed(package):
    return importlib.util.find_spec(package) is not None


def _opened(builder, split):
    """The examples of a split, by random access."""
    import tensorflow_datasets as tfds

    official.check(split, builder.info.splits, f"tfds:{builder.info.full_name}")
    try:
        if builder.info.file_format.value == "array_record":
            return builder.as_data_source(split)
        # Prepared earlier in TFDS's default format: in order only, and TensorFlow reads it.
        if _size(builder, split) > stored.LARGE:
            log.warning(
                "%s: %s is held in memory, since it is prepared as %s; as array_record it is read "
                "where it lies",
                *(builder.info.full_name, split, builder.info.file_format.value),
            )
        return _Listed(tfds.as_numpy(builder.as_dataset(split)))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            f"TFDS cannot read {split!r} in {builder.data_dir} ({reason:.200}); if files of it are "
            "broken, delete that folder, and it is prepared anew. "
            f"Received: 'tfds:{builder.info.full_name}'"
        ) from error


class _Listed(list):
    def __getitems__(self, indices):
        return [self[i] for i in indices]


def _size(builder, split):
    """Bytes of a split, or of a part of one, about."""
    whole = [builder.info.splits[name] for name in official.names(split)]
    part = builder.info.splits[split].num_examples / max(1, sum(one.num_examples for one in whole))
    return int(part * sum(one.num_bytes for one in whole))


def _state(builder, split):
    """What changes when the files of a split do."""
    about = [(file.name, file.stat()) for file in map(Path, builder.info.splits[split].filepaths)]
    return [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in about]


def _reachable(url):
    """Whether the server of `url` answers within a second."""
    answered = threading.Event()

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=SECONDS)
        except urllib.error.HTTPError:
            pass  # an answer, if not a kind one
        except OSError:
            return
        answered.set()

    # A thread, since no timeout of urlopen covers looking up the name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return answered.is_set()
