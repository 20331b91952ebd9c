"""SIGTERM, such as the notice of a spot machine: finish what is quick, and exit in time."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

FINISH_SECONDS = 45.0  # time that the shards in progress have to finish
ALL_SECONDS = 85.0  # time until the process ends; clouds give 120 s, Kubernetes 30 s by default


class NoTimeError(KeyboardInterrupt):
    """The time after the notice is over.

    Like Ctrl-C it is no Exception, so that no handler of errors catches it.
    """


class Notice:
    """A context manager that listens for SIGTERM; outside the main thread it does nothing.

    Attributes:
        received: the signal has arrived.
        finish: called when the signal arrives.
    """

    def __init__(self) -> None:
        self.received = False
        self.finish: Callable[[], None] = lambda: None
        self.time = 0.0  # time of the signal, in seconds of `time.monotonic`
        self.in_main_thread = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Notice":
        if self.in_main_thread:
            self.former_handlers = {
                number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)
            }
        self.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.in_main_thread:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in self.former_handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def listen(self) -> None:
        """Install the signal handlers; call it again after code that replaces them (`ray.init`)."""
        if self.in_main_thread:
            signal.signal(signal.SIGTERM, self._on_terminate)
            signal.signal(signal.SIGALRM, self._on_alarm)

    def limit_time(self) -> None:
        """If the signal has arrived, limit what follows to the rest of `ALL_SECONDS`."""
        if self.in_main_thread and self.received:
            self.time = self.time or time.monotonic()
            rest = self.time + ALL_SECONDS - time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, max(1.0, rest))

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received = True
            self.time = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, FINISH_SECONDS)
            self.finish()

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        raise NoTimeError
