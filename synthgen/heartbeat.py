"""A heartbeat for work that takes long: each pass through a network counts one beat.

Code that watches the work sees the count grow as long as the work makes progress.
"""

_count = 0


def record_beat() -> None:
    """Record that the work makes progress."""
    global _count
    _count += 1


def count_beats() -> int:
    """Return the number of beats in this process so far."""
    return _count
