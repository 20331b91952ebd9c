"""The verifier that scores each box by the similarity of its crop and its text under CLIP."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

from synthgen.layouts.base import Layout
from synthgen.verification.base import Verdict
from synthgen.verification.clip import Spec
from synthgen.verification.crops import build_verdicts, crop_boxes, split_into_batches


class ClipVerifier:
    """The loaded CLIP model."""

    def __init__(self, spec: Spec, device: str) -> None:
        self.spec = spec
        self.processor = AutoImageProcessor.from_pretrained(spec.folder(), trust_remote_code=False)
        self.tokenizer = CLIPTokenizer.from_pretrained(spec.folder())
        model = CLIPModel.from_pretrained(spec.folder(), use_safetensors=True)
        self.model = model.eval().to(device)

    @torch.no_grad()
    def __call__(
        self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]
    ) -> list[Verdict]:
        crops = crop_boxes(images, layouts, self.spec.context)
        if not crops:
            return build_verdicts(torch.zeros(0), layouts)
        texts = []
        for layout in layouts:
            for name, phrase in zip(layout.categories, layout.prompts, strict=True):
                texts.append(self.spec.text.format(category=name, phrase=phrase))
        distinct_texts = list(dict.fromkeys(texts))
        rows = [distinct_texts.index(text) for text in texts]
        text_embeddings = self.words(distinct_texts)[rows]
        image_embeddings = torch.cat([self.seen(batch) for batch in split_into_batches(crops)])
        similarities = (image_embeddings * text_embeddings).sum(1).clamp(min=0)
        return build_verdicts(similarities, layouts)

    def seen(self, crops: Sequence[Image.Image]) -> Tensor:
        """Return normalised embeddings (n, D) of images."""
        inputs = self.processor(list(crops), return_tensors="pt")
        features = self.model.vision_model(inputs.pixel_values.to(self.model.device))
        embeddings = self.model.visual_projection(features.pooler_output)
        return F.normalize(embeddings.float(), dim=1).cpu()

    def words(self, texts: Sequence[str]) -> Tensor:
        """Return normalised embeddings (n, D) of texts."""
        inputs = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        features = self.model.text_model(**inputs.to(self.model.device))
        embeddings = self.model.text_projection(features.pooler_output)
        return F.normalize(embeddings.float(), dim=1).cpu()
