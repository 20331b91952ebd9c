"""Boxes looked at one by one by CLIP: the score is the similarity with the words for them."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

from synthgen.layouts.base import Layout
from synthgen.scenes.scene import Scene
from synthgen.verification.base import Verdict
from synthgen.verification.clip import Spec
from synthgen.verification.crops import batches, crops_of, verdicts


class ClipVerifier:
    """The loaded CLIP."""

    def __init__(self, spec: Spec, device: str) -> None:
        self.spec = spec
        self.processor = AutoImageProcessor.from_pretrained(spec.folder(), trust_remote_code=False)
        self.tokenizer = CLIPTokenizer.from_pretrained(spec.folder())
        self.model = (
            CLIPModel.from_pretrained(spec.folder(), use_safetensors=True).eval().to(device)
        )

    @torch.no_grad()
    def __call__(
        self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]
    ) -> list[Verdict]:
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
        return F.normalize(
            self.model.visual_projection(self.model.vision_model(pixels).pooler_output).float(),
            dim=1,
        ).cpu()

    def words(self, texts: Sequence[str]) -> Tensor:
        """Normalised embeddings (n, D) of texts."""
        ids = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(
            self.model.device
        )
        return F.normalize(
            self.model.text_projection(self.model.text_model(**ids).pooler_output).float(), dim=1
        ).cpu()
