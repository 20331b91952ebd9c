"""Features of images, for distances between sets of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from synthgen.verification import efficientnet

BATCH_SIZE = 32  # images


class Encoder:
    """A transformers network whose pooled features describe images.

    Of CLIP and similar models, the vision part is used.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        model = AutoModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
        model = model.eval().to(device)
        self.net: Any = getattr(model, "vision_model", model)
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Return features (n, D) float32 of RGB images."""
        batches = []
        for start in range(0, len(images), BATCH_SIZE):
            batches.append(self.encode_batch(images[start : start + BATCH_SIZE]))
        return torch.cat(batches).float().cpu()

    def encode_batch(self, images: Sequence[Image.Image]) -> Tensor:
        """Return features (n, D) of one batch."""
        inputs = self.processor(list(images), return_tensors="pt")
        output = self.net(pixel_values=inputs.pixel_values.to(self.device))
        pooled = getattr(output, "pooler_output", None)
        return output.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)


class EfficientNetEncoder(Encoder):
    """EfficientNet-Lite0, with 1280 features."""

    def __init__(self, device: str) -> None:
        self.net = efficientnet.load().to(device)
        self.device = device

    def encode_batch(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = efficientnet.pixels(images).to(self.device)
        return self.net.extract_features(pixels).mean((2, 3))
