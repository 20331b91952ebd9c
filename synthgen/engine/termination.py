"""SIGTERM, such as a spot machine's notice: what is quick is finished, the rest is dropped, and all of it in time."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

FINISH_SECONDS = 45.0  # for the shards in work
ALL_SECONDS = 85.0  # until the process is to be gone: clouds give 120, Kubernetes by default 30 (then it is a kill)


class NoTimeError(KeyboardInterrupt):
    """The time after the notice is up; not an Exception, as with Ctrl-C, so that nothing on the way takes it for a fault."""


class Notice:
    """Listens for SIGTERM while a dataset is made; use it as a context manager. Does nothing outside the main thread.

    Attributes:
        given: whether the signal came.
        finish: called when it does.
    """

    def __init__(self) -> None:
        self.given = False
        self.finish: Callable[[], None] = lambda: None
        self.at = 0.0
        self.main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Notice":
        if self.main:
            self.before = {
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
        if self.main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in self.before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def listen(self) -> None:
        """Install the handlers; again where somebody else did, as `ray.init` does."""
        if self.main:
            signal.signal(signal.SIGTERM, self._terminate)
            signal.signal(signal.SIGALRM, self._alarm)

    def drop(self) -> None:
        """Give what follows the rest of the time, if the signal came."""
        if self.main and self.given:
            self.at = self.at or time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, max(1.0, self.at + ALL_SECONDS - time.monotonic()))

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if not self.given:
            self.given, self.at = True, time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, FINISH_SECONDS)
            self.finish()

    def _alarm(self, number: int, frame: FrameType | None) -> None:
        raise NoTimeError
