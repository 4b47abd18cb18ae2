"""What commands' options have in common: their kinds of values, and groups of them."""

import argparse
import importlib
import json
import logging
import math
import os
import signal
import sys
from pathlib import Path

from kzoo.backend import BACKENDS, DEFAULT, chosen, installed
from kzoo.errors import InputError, missing_package
from kzoo.files import parse_json
from kzoo.values import LARGEST, interval


class Parser(argparse.ArgumentParser):
    """Raises `InputError` where argparse would print its usage and exit."""

    def error(self, message):
        raise InputError(f"{message}. See `{self.prog} --help`")

    def format_help(self):
        """argparse's, with what the command does before its usage."""
        description, self.description = self.description, None
        try:
            text = super().format_help()
        finally:
            self.description = description
        formatter = self._get_formatter()
        formatter.add_text(description)
        return f"{formatter.format_help()}\n{text}"


def add_command(commands, name, help, run=None, saved=None, more=""):
    """A command's parser.

    Args:
        commands: what argparse's `add_subparsers` returned.
        name: of the command.
        help: what it does, in a line: "list the presets".
        run: called with the options; None for a command of commands.
        saved: called with the options where the command is ended from outside; it says in a
            sentence what has been saved. Commands that save nothing before their end have none.
        more: sentences that its own help has besides.
    """
    description = f"{help[0].upper()}{help[1:]}. {more}"
    command = commands.add_parser(name, help=help, description=description)
    command.set_defaults(run=run, saved=saved)
    return command


def add_overrides(command):
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override a config field, or an option inside one "
        "(mechanism.linear.feature_map=relu); VALUE is JSON or a bare word",
    )


def add_size(command):
    """Options of a study that is run at another size than it was written for."""
    command.add_argument(
        "--size",
        type=name,
        help="of the presets of all arms: nano, tiny, small, base, large or 1b; what follows the "
        "size is scaled, and told",
    )
    command.add_argument(
        "--steps", type=positive, metavar="N", help="of each run; default: as the study says"
    )


def add_tokenizer(command):
    command.add_argument(
        "--tokenizer",
        type=tokenizer,
        default="bytes",
        metavar="KIND:SIZE",
        help="bytes (the default); bpe:4096 or unigram:4096, trained on the training part of the "
        "text; or the path of a tokenizer.json",
    )


def add_running(command):
    add_json(command, "end with one JSON line on stdout")
    command.add_argument(
        "--backend", choices=BACKENDS, help=f"of Keras; default: KERAS_BACKEND, else {DEFAULT}"
    )


def add_json(command, help):
    command.add_argument("--json", action="store_true", help=help)


def overrides(settings):
    """`["mask=causal", "objective.masked_lm.rate=0.3"]` as a dict of fields.

    Dots lead into JSON objects: `{"mask": "causal", "objective": {"masked_lm": {"rate": 0.3}}}`.
    """
    fields = {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        *outer, last = path.split(".")
        if not equals or not all([*outer, last]):
            raise InputError(f"--set takes FIELD=VALUE. Received: {setting!r}")
        inside = fields
        for name in outer:
            inside = inside.setdefault(name, {})
            if not isinstance(inside, dict):
                raise InputError(f"--set gives a field once. Received: {name!r} twice")
        if last in inside:
            raise InputError(f"--set gives a field once. Received: {path!r} twice")
        inside[last] = json_or_text(value, f"--set {setting!r}")
    return fields


def with_labels(fields, source):
    """Overrides whose objective, if it is a classification without labels, has those of the data.

    Args:
        fields: a dict of overrides.
        source: of the data, as in `kzoo.data.load`.
    """
    name = "classification"
    if fields.get("objective") not in (name, {name: {}}):
        return fields
    from kzoo import data

    return {**fields, "objective": {name: {"labels": data.labels(source)}}}


def json_or_text(text, received):
    """The value of a text that is JSON, or else the text, such as a name.

    Raises:
        InputError: for JSON that `kzoo.files.parse_json` refuses, with what was `received`.
    """
    try:
        return parse_json(text)
    except InputError as error:
        raise InputError(f"{error}. Received: {received}") from None
    except ValueError:
        return text


def leave_tensorflow(sources):
    """Keep keras-hub from loading TensorFlow where neither backend nor data need it.

    It would load it for its own preprocessing, for seconds and with lines of noise, and works
    the same without.
    """
    if os.environ["KERAS_BACKEND"] != "tensorflow" and not any(
        "tfds" in source if isinstance(source, dict) else source.startswith("tfds:")
        for source in sources
    ):
        sys.modules.setdefault("tensorflow", None)


def need(module, purpose):
    """`InputError` unless a package is installed, which costs no import of it."""
    if not installed(module):
        raise missing_package(module, purpose)


def load_backend():
    """Import the backend with signals held back: in the midst of that JAX's C++ would crash."""
    held = []

    def hold(number, frame):
        held.append(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    for number in before:
        signal.signal(number, hold)
    try:
        for package in (os.environ["KERAS_BACKEND"], "grain"):  # which imports JAX
            importlib.import_module(package)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in held[:1]:
        signal.raise_signal(number)


def say_backend(options):
    """Say, before the work begins, which backend does it, who chose that, and on what it runs."""
    source = "--backend" if options.backend else options.backend_chosen_by
    logging.getLogger("kzoo").info("backend %s (%s), %s", chosen()[0], source, _devices())


def _devices():
    """What the backend computes on, in words; nothing but JAX is started for it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = f"cpu, {cores} core{'s' if cores > 1 else ''}"
    backend, _ = chosen()
    if backend == "jax":
        import jax

        devices = jax.devices()
        if devices[0].platform != "cpu":
            return f"{len(devices)} × {devices[0].device_kind}"
        gpu = any(map(os.path.exists, ("/dev/nvidia0", "/dev/nvidiactl")))
        hint = "; the NVIDIA GPU here needs pip install 'kzoo[cuda]'" if gpu else ""
        return cpu + (f", {len(devices)} devices" if len(devices) > 1 else "") + hint
    if backend == "torch":
        import torch

        return f"{torch.cuda.device_count()} × cuda" if torch.cuda.is_available() else cpu
    import tensorflow

    gpus = tensorflow.config.list_physical_devices("GPU")
    return f"{len(gpus)} × gpu" if gpus else cpu


def print_json(result):
    """One line of JSON; a number that is not finite is null, as JSON has none."""
    result = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in result.items()
    }
    print(json.dumps(result, allow_nan=False))


# Kinds of values: each takes the text of an option ---------------------------------------------


def mesh(text):
    """`"data=4,model=2"` as a dict."""
    pairs = [pair.partition("=")[::2] for pair in text.split(",")]
    if not all(axis and size.isdecimal() and int(size) for axis, size in pairs):
        raise argparse.ArgumentTypeError(f"data=N,model=M. Received: {text!r}")
    return {axis: int(size) for axis, size in pairs}


def positive(text):
    number = int(text) if text.isdecimal() and len(text) < 20 else 0
    if not 1 <= number <= LARGEST:
        raise argparse.ArgumentTypeError(
            f"a positive integer, at most {LARGEST}. Received: {text!r}"
        )
    return number


def count(text):
    if not (text.isdecimal() and len(text) < 20 and int(text) <= LARGEST):
        raise argparse.ArgumentTypeError(
            f"an integer from 0, at most {LARGEST}. Received: {text!r}"
        )
    return int(text)


def seed(text):
    if not (text.isdecimal() and len(text) < 20 and int(text) <= LARGEST):
        raise argparse.ArgumentTypeError(f"an integer in [0, 2^31). Received: {text!r}")
    return int(text)


def rate(text):
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"a positive number, such as 0.003. Received: {text!r}")
    return number


def minutes(text):
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"a positive number, such as 10. Received: {text!r}")
    return number


def share(text):
    number = _number(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(
            f"a number between 0 and 1, such as 0.1. Received: {text!r}"
        )
    return number


def packing(text):
    """A packing by its name or its JSON, as JSON."""
    from kzoo.data import packing as packings

    try:
        return packings.get(parse_json(text) if text.startswith("{") else text).get_config()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def every(text):
    """`1000`, steps, or `60s`, as text."""
    try:
        interval(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def words(text):
    """Text in UTF-8; the shell can hand over other bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"text in UTF-8. Received: {text!r}") from None
    return text


def name(text):
    """Of something: not empty."""
    if not text:
        raise argparse.ArgumentTypeError("a name. Received: ''")
    return text


def source(text):
    """Of data: its name or path as text, or its JSON as a dict, as in `kzoo.data.load`."""
    if not text.lstrip().startswith("{") or os.path.exists(text):
        return name(text)
    try:
        return parse_json(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f'a source in JSON, such as {{"synthetic": {{"task": "copy"}}}} ({error}). '
            f"Received: {text!r:.120}"
        ) from None


def path(text):
    return Path(name(text))


def tokenizer(text):
    """`bpe:4096`, or a path, as JSON of `kzoo.data.tokenizer_spec`."""
    from kzoo.data import tokenizer_spec

    try:
        return tokenizer_spec.get(name(text))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(text):
    try:
        return float(text)
    except ValueError:
        return math.nan
