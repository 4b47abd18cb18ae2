"""The time that a study is given."""

import time


class TimeOver(Exception):
    """The minutes of a study are over; what is finished stands in its records."""


class Clock:
    """Ends a study after so many minutes, between two runs where it can.

    Args:
        minutes: None for no end.
        now: function that tells seconds.

    Example:
        >>> Clock(None).hear("begin", "pydoc/GPT/0")
    """

    def __init__(self, minutes, now=time.monotonic):
        self._now = now
        self._end = None if minutes is None else now() + 60 * minutes
        self._begun, self._longest = {}, 0.0

    def hear(self, kind, name):
        """What a run says: "begin", "step" or "record".

        Raises:
            TimeOver: if a run begins that would not end in time, by the longest so far; and in a
                run, if the time is over. It goes on later from its last checkpoint.
        """
        if self._end is None:
            return
        now = self._now()
        left = self._end - now
        if kind == "record":
            self._longest = max(self._longest, now - self._begun.pop(name, now))
        elif kind == "begin":
            self._begun[name] = now
            left -= self._longest
        if left < 0 and kind != "record":
            raise TimeOver
