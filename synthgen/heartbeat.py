"""Signs of life, and of progress, of work that takes long.

Each pass through a network counts one beat. Code that watches the work sees the count grow as long
as the work makes progress. Beside the beats it sees what is done now, and which share of it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Pulse:
    """What a process works on.

    Attributes:
        beats: the number of beats so far.
        activity: what is done now, such as "denoising"; empty before anything is.
        images: the number of images in the batch in progress.
        expected: the cost of the batch in progress, as far as it is known. Costs have any unit.
        done: the cost of the part of the batch that is done.
        share: the largest share of the batch that was done so far.
    """

    beats: int = 0
    activity: str = ""
    images: int = 0
    expected: float = 0.0
    done: float = 0.0
    share: float = 0.0

    @property
    def part(self) -> float:
        """How much of the batch is done, in images; a half of two images is 1."""
        return self.share * self.images


_pulse = Pulse()
_watchers: list[Callable[[Pulse], object]] = []


def begin_batch(images: int) -> None:
    """Record that a batch of so many images begins, of which nothing is done."""
    _pulse.images = images
    _pulse.expected = 0.0
    _pulse.done = 0.0
    _pulse.share = 0.0


def expect(cost: float) -> None:
    """Record that the batch in progress also needs work of this cost."""
    _pulse.expected += cost


def begin_activity(activity: str) -> None:
    """Record what is done from now on."""
    _pulse.activity = activity
    _notify()


def record_beat(cost: float = 0.0) -> None:
    """Record that the work makes progress.

    Args:
        cost: the cost of what was done since the last beat.
    """
    _pulse.beats += 1
    _pulse.done += cost
    if _pulse.expected:
        _pulse.share = max(_pulse.share, min(1.0, _pulse.done / _pulse.expected))
    _notify()


def read_pulse() -> Pulse:
    """Return what this process works on."""
    return _pulse


@contextmanager
def watch(watcher: Callable[[Pulse], object]) -> Iterator[None]:
    """Call a function after every beat and at every new activity, in the thread that works."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def _notify() -> None:
    for watcher in _watchers:
        watcher(_pulse)
