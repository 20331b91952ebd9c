"""Training of a detector of transformers (DETR, RT-DETR, D-FINE, YOLOS, …): its own loss, its own image processor."""

import inspect
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, pipeline

from synthgen.errors import InputError
from synthgen.geometry import box_areas, clip_boxes, shares_inside, xyxy_to_xywh
from synthgen.layouts.base import HELD
from synthgen.training.augmentation import Picture
from synthgen.training.detector import Spec
from synthgen.training.detector.trainee import DetectorTrainee, Example
from synthgen.verification.detections import Detections
from synthgen.verification.detector.verifier import detect_with


class TransformersTrainee(DetectorTrainee):
    """A detector of transformers; forward is the model's own loss of one batch."""

    def __init__(self, spec: Spec, folder: Path) -> None:
        super().__init__(spec, spec.crop)
        self.net = open_model(folder, spec)
        self.processor = AutoImageProcessor.from_pretrained(folder)
        self.takes = set(inspect.signature(self.net.forward).parameters)

    def collate(self, examples: Sequence[Example], rng: np.random.Generator) -> dict[str, Any]:
        """What the model takes, and a seed: dropout and denoising queries are to be the same when a run goes on."""
        pictures = [Image.fromarray(example.picture) for example in examples]
        truths = [
            {"image_id": k, "annotations": annotations(example)}
            for k, example in enumerate(examples)
        ]
        inputs = self.processor(images=pictures, annotations=truths, return_tensors="pt")
        return {
            **{name: inputs[name] for name in inputs if name in self.takes},
            "seed": int(rng.integers(2**31)),
        }

    def forward(self, batch: dict[str, Any]) -> Tensor:
        device = self.net.device
        torch.manual_seed(batch["seed"])
        inputs = {
            name: value.to(device)
            for name, value in batch.items()
            if name not in ("seed", "labels")
        }
        labels = [
            {name: of[name].to(device) for name in ("class_labels", "boxes")}
            for of in batch["labels"]
        ]
        loss: Tensor = self.net(**inputs, labels=labels).loss
        return loss

    @cached_property
    def pipe(self) -> Any:
        """Made when it is first needed: by then the model is on its device."""
        return pipeline(
            "object-detection",
            model=self.net,
            image_processor=self.processor,
            device=self.net.device,
        )

    def detect(self, picture: Picture) -> Detections:
        return detect_with(self.pipe, [picture])[0]

    def export(self, folder: Path) -> None:
        """Write the model, and the image processor that it was trained with."""
        self.net.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def open_model(folder: Path, spec: Spec) -> Any:
    """The model of a folder, or one of its architecture, that finds the job's categories.

    Raises:
        InputError: it is no detector, or it needs a package that is not there.
    """
    names = dict(enumerate(spec.categories))
    ids = {name: i for i, name in names.items()}
    try:
        config = AutoConfig.from_pretrained(
            folder, id2label=names, label2id=ids, trust_remote_code=False
        )
        if not spec.pretrained:
            return AutoModelForObjectDetection.from_config(config, trust_remote_code=False)
        return AutoModelForObjectDetection.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"init: {spec.init}: not to be loaded as a detector of transformers: {reason}"
        ) from None


def annotations(example: Example) -> list[dict[str, Any]]:
    """COCO's annotations (bbox xywh in px) of the boxes that lie in a crop at least by half, clipped to it."""
    height, width = example.picture.shape[:2]
    clipped = clip_boxes(example.boxes, width, height)
    keep = np.flatnonzero(
        shares_inside(example.boxes.astype(np.float64), [(0, 0, width, height)])[:, 0] >= HELD
    )
    boxes = xyxy_to_xywh(clipped)
    areas = box_areas(clipped)
    return [
        {
            "bbox": boxes[i].tolist(),
            "area": float(areas[i]),
            "category_id": example.kinds[i],
            "iscrowd": 0,
        }
        for i in keep
    ]
