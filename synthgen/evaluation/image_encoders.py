"""Features of pictures, for distances between sets of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from synthgen.verification import efficientnet

AT_ONCE = 32  # pictures


class Encoder:
    """A network of transformers that sees pictures: its pooled features. Of CLIP and its kin, the part that sees."""

    def __init__(self, folder: Path, device: str) -> None:
        self.processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        model = (
            AutoModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
            .eval()
            .to(device)
        )
        self.net: Any = getattr(model, "vision_model", model)
        self.device = device

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features (n, D) float32 of RGB pictures."""
        found = [self.features(pictures[k : k + AT_ONCE]) for k in range(0, len(pictures), AT_ONCE)]
        return torch.cat(found).float().cpu()

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features of a few pictures."""
        out = self.net(
            pixel_values=self.processor(list(pictures), return_tensors="pt").pixel_values.to(
                self.device
            )
        )
        pooled = getattr(out, "pooler_output", None)
        return out.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)


class EfficientNetEncoder(Encoder):
    """EfficientNet-Lite0: 1280 features."""

    def __init__(self, device: str) -> None:
        self.net, self.device = efficientnet.load().to(device), device

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        return self.net.extract_features(efficientnet.pixels(pictures).to(self.device)).mean((2, 3))
