"""Training state on disk, and the learning-rate schedule."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def save_state(path: Path, parts: dict[str, Any], step: int) -> None:
    """Write the state of every part; a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, temporary)
    temporary.replace(path)


def load_state(path: Path, parts: dict[str, Any]) -> int:
    """Restore every part and return the step to go on from; 0 if there is nothing to go on from."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def trapezoid(steps: int, warm: int, decay: float = 0.3) -> Callable[[int], float]:
    """Learning-rate factor: linear warm-up, constant, linear to 0 over the last `decay` of the steps."""
    return lambda step: min(1.0, (step + 1) / warm, (steps - step) / (decay * steps))
