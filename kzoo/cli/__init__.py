"""The command line: its commands, what is set up for them, and how they end.

Compare attention masks and mechanisms with all else equal. Wrong input, and a disk or folder that
cannot be written, are answered with one line on standard error and exit status 2. On SIGTERM and
SIGHUP, `train` and `compare` save what they have, say so, and exit with status 75; the same command
goes on from there. `list` and `show` read JSON only; Keras loads when a model is made, with the
backend that was asked for.
"""

import contextlib
import logging
import os
import signal
import sys

from kzoo import __version__
from kzoo.backend import BACKENDS, VARIABLE, chosen
from kzoo.cli import (
    analyse,
    bench,
    compare,
    compile,
    data,
    doctor,
    evaluate,
    generate,
    look,
    quiet,
    train,
)
from kzoo.cli.arguments import Parser, need
from kzoo.compilation_cache import use_compilation_cache
from kzoo.errors import InputError, Preempted, missing_package, unknown
from kzoo.files import reason

EPILOG = "Run `kzoo COMMAND --help` for the options of a command."
COMMANDS = (look, data, train, generate, evaluate, compare, analyse, compile, bench, doctor)


def main(arguments=None):
    """Run the command line.

    Returns:
        The exit status: 0; 1 where `doctor` finds something wrong; 2 for wrong input, or where the
        system refuses; 75 after SIGTERM or SIGHUP; 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding
    options = None
    try:
        options = _parser().parse_args(arguments)
        _set_up(options)
        with _ending(options):
            status = options.run(options)
        sys.stdout.flush()
    except InputError as error:
        return _say(str(error), 2)
    except Preempted as stop:  # which has said what is saved
        return stop.code
    except _Ended as stop:
        return _say(f"ended by {stop}; {options.saved(options)}", Preempted.STATUS)
    except KeyboardInterrupt:
        saved = getattr(options, "saved", None)
        return _say(f"interrupted; {saved(options)}" if saved else "interrupted", 130)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _say(_refused(error, options), 2)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "kzoo":
            raise
        return _say(str(missing_package(error.name, "this command")), 2)
    return status or 0


def _parser():
    parser = Parser(prog="kzoo", description=__doc__.split("\n\n")[1], epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"kzoo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


def _set_up(options):
    """Choose the backend before anything imports Keras, and let warnings be read."""
    backend, options.backend_chosen_by = chosen()
    backend = getattr(options, "backend", None) or backend
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    os.environ[VARIABLE] = backend
    if options.command not in ("list", "show", "report"):
        need(backend, f"the backend {backend}")
    if options.command in ("bench", "compile"):
        # One times compilation; the other's programs, for other machines, JAX cannot read again.
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"
    else:
        use_compilation_cache()
    quiet.others()
    handler = quiet.Handler()
    handler.setFormatter(logging.Formatter("kzoo: %(message)s"))
    log = logging.getLogger("kzoo")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


# How a command ends ---------------------------------------------------------------------------


class _Ended(BaseException):
    """A signal that asks a command to end; its name."""


@contextlib.contextmanager
def _ending(options):
    """SIGTERM and SIGHUP end a command that saves, so that it can say what it has saved.

    A training saves itself first. Where they are ignored, as `nohup` has it, they stay so.
    """
    before = {}

    def end(number, frame):
        for each in before:  # one is enough: what follows is not interrupted
            signal.signal(each, signal.SIG_IGN)
        raise _Ended(signal.Signals(number).name)

    if options.saved is not None:
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (None, signal.SIG_IGN):
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refused(error, options):
    """What the system refused, and what is saved all the same."""
    where = f": {error.filename}" if error.filename is not None else ""
    saved = getattr(options, "saved", None)
    return f"{reason(error)}{where}" + (f"; {saved(options)}" if saved else "")


def _say(message, status):
    with contextlib.suppress(OSError):  # the terminal is gone, say
        print("kzoo:", message.replace("\n", "\\n"), file=sys.stderr)
    return status
