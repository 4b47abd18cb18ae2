"""SIGTERM, which a machine sends before it takes itself away: the run is saved first."""

import os
import signal
import threading


class Notice:
    """Notes SIGTERM, where it would end the process at once.

    Only between `begin` and `end`, only in the main thread, and not where something that is not
    Python handles SIGTERM already (JAX does, where several processes train together).

    Args:
        training: called with the frame that a signal interrupts; whether a training is under
            way there. If it is not (an error has ended it before `end`), the signal does what
            it did before.

    Attributes:
        received: whether SIGTERM has come.
    """

    def __init__(self, training=lambda frame: True):
        self.received = False
        self._training = training
        self._before = None

    def begin(self):
        self.received = False
        ours = threading.current_thread() is threading.main_thread()
        if ours and self._before is None and signal.getsignal(signal.SIGTERM) is not None:
            self._before = signal.signal(signal.SIGTERM, self._note)

    def end(self):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _note(self, number, frame):
        if self._training(frame):
            self.received = True
        else:
            self.end()
            os.kill(os.getpid(), number)


def is_in_fit(model):
    """For `Notice`: whether a frame belongs to `model.fit`."""

    def training(frame):
        while frame is not None:
            if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model:
                return True
            frame = frame.f_back
        return False

    return training
