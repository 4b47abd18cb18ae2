"""Records of the reproductions: JSON lines, each with where it comes from."""

import datetime
import json
import pathlib
from importlib import metadata


def read(path):
    """The records of a file; none if it is not there."""
    path = pathlib.Path(path)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def append(path, record):
    """Add a record to a file, which is made if it is not there."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record | origin()) + "\n")


def origin():
    """Versions, processor and day: a dict of JSON values."""
    import keras

    from kzoo.studies.provenance import processor

    backend = keras.config.backend()
    return {
        "versions": {name: metadata.version(name) for name in ("keras", backend)},
        "processor": processor(),
        "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
