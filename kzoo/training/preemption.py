"""SIGTERM, which a machine sends before it takes itself away, and SIGHUP, which comes where a
terminal is closed: the run is saved first."""

import os
import signal
import threading

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Notice:
    """Notes SIGTERM and SIGHUP, where they would end the process at once.

    Only between `begin` and `end`, only in the main thread, not where something that is not
    Python handles them already (JAX does, where several processes train together), and not where
    they are ignored (as `nohup` has it).

    Args:
        training: called with the frame that a signal interrupts; whether a training is under
            way there. If it is not (an error has ended it before `end`), the signal does what
            it did before.

    Attributes:
        received: the name of the signal that has come, or None.
        interrupted: whether Ctrl-C has come. It raises as ever; but where Python was collecting
            garbage for JAX just then, what is raised is dropped, and only this is left.
    """

    def __init__(self, training=lambda frame: True):
        self.received = None
        self.interrupted = False
        self._training = training
        self._before = {}

    def begin(self):
        self.received, self.interrupted = None, False
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            if signal.getsignal(number) not in (None, signal.SIG_IGN):
                self._before[number] = signal.signal(number, self._note)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)

    def end(self):
        while self._before:
            signal.signal(*self._before.popitem())

    def _interrupt(self, number, frame):
        self.interrupted = True
        raise KeyboardInterrupt

    def _note(self, number, frame):
        if self._training(frame):
            self.received = signal.Signals(number).name
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
