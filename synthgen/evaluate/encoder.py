"""Features of pictures, for distances between sets of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel

AT_ONCE = 32  # pictures
SIDE = 224  # px, of what EfficientNet sees


class Encoder:
    """A network of transformers that sees pictures: its pooled features. Of CLIP and its kin, the part that sees."""

    def __init__(self, folder: Path, device: str) -> None:
        self.processor = AutoImageProcessor.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, use_safetensors=True).eval().to(device)
        self.net, self.device = getattr(model, "vision_model", model), device

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features (n, D) float32 of RGB pictures."""
        found = [self.features(pictures[k : k + AT_ONCE]) for k in range(0, len(pictures), AT_ONCE)]
        return torch.cat(found).float().cpu()

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features of a few pictures."""
        out = self.net(pixel_values=self.processor(list(pictures), return_tensors="pt").pixel_values.to(self.device))
        pooled = getattr(out, "pooler_output", None)
        return out.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)


class EfficientNetEncoder(Encoder):
    """EfficientNet-Lite0, trained on ImageNet, from its package (the extra `train`): 1280 features."""

    def __init__(self, device: str) -> None:
        from synthgen.train.vae import Features

        self.net, self.device = nn.Module(), device
        self.efficientnet = Features().net.to(device)

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        size = (SIDE, SIDE)
        pixels = np.stack([np.asarray(p.resize(size, Image.Resampling.BICUBIC), np.float32) for p in pictures])
        x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) - 127) / 128
        return self.efficientnet.extract_features(x.to(self.device)).mean((2, 3))
