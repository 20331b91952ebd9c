"""Boxes looked at one by one: a classifier's probability, or CLIP's similarity with the words for them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForImageClassification, CLIPModel, CLIPTokenizer

from synthgen.layouts import Layout
from synthgen.scene import Scene
from synthgen.verify import Verdict, efficientnet
from synthgen.verify.verifiers.classifier import PACKAGED
from synthgen.verify.verifiers.classifier import Spec as ClassifierSpec
from synthgen.verify.verifiers.clip import Spec as ClipSpec

AT_ONCE = 64  # crops


class ClassifierVerifier:
    """The loaded classifier."""

    def __init__(self, spec: ClassifierSpec, device: str) -> None:
        self.spec, self.known = spec, spec.known()
        self.shares = packaged(device) if spec.model == PACKAGED else of_transformers(spec, device)

    @torch.no_grad()
    def __call__(self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]) -> list[Verdict]:
        crops = crops_of(images, layouts, self.spec.context)
        found = [self.shares(part).float().softmax(1).cpu() for part in batches(crops)]
        names = [name for layout in layouts for name in layout.categories]
        wanted = {name: self.spec.classes(name, self.known) for name in set(names)}
        rows = zip(torch.cat(found) if found else [], names, strict=True)
        return verdicts(torch.tensor([float(shares[wanted[name]].sum()) for shares, name in rows]), layouts)


def of_transformers(spec: ClassifierSpec, device: str) -> Callable[[Sequence[Image.Image]], Tensor]:
    """Pictures to logits (n, classes) by a classifier of transformers."""
    processor = AutoImageProcessor.from_pretrained(spec.folder(), trust_remote_code=False)
    safe = {"use_safetensors": True, "trust_remote_code": False}
    model = AutoModelForImageClassification.from_pretrained(spec.folder(), **safe).eval().to(device)
    return lambda pictures: model(**processor(list(pictures), return_tensors="pt").to(device)).logits


def packaged(device: str) -> Callable[[Sequence[Image.Image]], Tensor]:
    """Pictures to logits (n, 1000) by EfficientNet-Lite0."""
    net = efficientnet.load().to(device)
    return lambda pictures: net(efficientnet.pixels(pictures).to(device))


class ClipVerifier:
    """The loaded CLIP."""

    def __init__(self, spec: ClipSpec, device: str) -> None:
        self.spec = spec
        self.processor = AutoImageProcessor.from_pretrained(spec.folder(), trust_remote_code=False)
        self.tokenizer = CLIPTokenizer.from_pretrained(spec.folder())
        self.model = CLIPModel.from_pretrained(spec.folder(), use_safetensors=True).eval().to(device)

    @torch.no_grad()
    def __call__(self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]) -> list[Verdict]:
        crops = crops_of(images, layouts, self.spec.context)
        texts = [
            self.spec.text.format(category=n, phrase=p)
            for of in layouts
            for n, p in zip(of.categories, Scene(of, "").phrases, strict=True)
        ]
        if not crops:
            return verdicts(torch.zeros(0), layouts)
        distinct = list(dict.fromkeys(texts))
        words = self.words(distinct)[[distinct.index(text) for text in texts]]
        seen = torch.cat([self.seen(part) for part in batches(crops)])
        return verdicts((seen * words).sum(1).clamp(min=0), layouts)

    def seen(self, crops: Sequence[Image.Image]) -> Tensor:
        """Normalised embeddings (n, D) of pictures."""
        pixels = self.processor(list(crops), return_tensors="pt").pixel_values.to(self.model.device)
        return F.normalize(self.model.visual_projection(self.model.vision_model(pixels).pooler_output).float(), dim=1).cpu()

    def words(self, texts: Sequence[str]) -> Tensor:
        """Normalised embeddings (n, D) of texts."""
        ids = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        return F.normalize(self.model.text_projection(self.model.text_model(**ids).pooler_output).float(), dim=1).cpu()


def crops_of(images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout], context: float) -> list[Image.Image]:
    """The square round each box of each picture, with `context` of its longer side on each side, cut at the picture's edge."""
    crops = []
    for image, layout in zip(images, layouts, strict=True):
        for x0, y0, x1, y1 in layout.boxes.tolist():
            x, y, half = (x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, y1 - y0) * (0.5 + context)
            left, top = max(0, round(x - half)), max(0, round(y - half))
            crops.append(Image.fromarray(image[top : max(top + 1, round(y + half)), left : max(left + 1, round(x + half))]))
    return crops


def batches(crops: Sequence[Image.Image]) -> list[Sequence[Image.Image]]:
    """Crops, so many at a time."""
    return [crops[k : k + AT_ONCE] for k in range(0, len(crops), AT_ONCE)]


def verdicts(scores: Tensor, layouts: Sequence[Layout]) -> list[Verdict]:
    """The scores of all boxes, a verdict for each picture; such verifiers find nothing of their own."""
    parts = scores.numpy().astype(np.float32)
    ends = np.cumsum([len(layout) for layout in layouts])[:-1]
    return [Verdict(part, None, None, np.zeros((0, 4), np.float32)) for part in np.split(parts, ends)]
