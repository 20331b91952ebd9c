"""A sign of life of work that takes long: each pass through a network counts one; whoever watches sees it grow."""

_beats = 0


def beat() -> None:
    """Say that the work gets on."""
    global _beats
    _beats += 1


def beats() -> int:
    """How often it was said in this process."""
    return _beats
