"""The one exception for wrong input, and how its message is put together."""

import difflib

MOST_NAMES = 24  # of a longer list the message shows the beginning


class InputError(ValueError):
    """Input that kzoo refuses: the message says what was received and what would be right.

    A `ValueError`, so that callers need not know this class; the command line
    prints it as one line and exits with status 2.
    """


def unknown(kind, received, valid):
    """An `InputError` for a name outside a closed set, with the nearest valid name.

    Args:
        kind: what the name stands for, e.g. `"preset"`.
        received: the offending value, of any type.
        valid: iterable of the valid names (strings).

    Returns:
        An `InputError`, to be raised by the caller.

    Example:
        >>> str(unknown("mask", "casual", ["causal", "prefix"]))
        "unknown mask; did you mean 'causal'? Valid: causal, prefix. Received: 'casual'"
    """
    valid = [str(v) for v in valid]
    near = difflib.get_close_matches(str(received), valid, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    names = ", ".join(valid[:MOST_NAMES]) + ", …" * (len(valid) > MOST_NAMES)
    return InputError(f"unknown {kind}{hint} Valid: {names}. Received: {received!r:.120}")


class Preempted(SystemExit):
    """SIGTERM or SIGHUP came while a run trained, and the run has been saved: the same script or
    command, started again, goes on from there. Unless it is caught, the process exits with status 75
    (EX_TEMPFAIL: try again)."""

    STATUS = 75

    def __init__(self, message):
        super().__init__(self.STATUS)
        self.message = message

    def __str__(self):
        return self.message
