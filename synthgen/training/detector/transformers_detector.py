"""Training of detectors of transformers (DETR, RT-DETR, D-FINE, YOLOS, …) with their own loss."""

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
from synthgen.layouts.base import MIN_SHARE_INSIDE
from synthgen.training.augmentation import ImageArray
from synthgen.training.detector import Spec
from synthgen.training.detector.trainee import DetectorTrainee, Example
from synthgen.verification.detections import Detections
from synthgen.verification.detector.verifier import detect_with

MAX_SEED = 2**31  # exclusive
MAX_REASON = 300  # characters of an error of transformers in a message


class TransformersTrainee(DetectorTrainee):
    """A detector of transformers; forward returns the model's own loss of one batch."""

    def __init__(self, spec: Spec, folder: Path) -> None:
        super().__init__(spec, spec.crop)
        self.net = load_model(folder, spec)
        self.processor = AutoImageProcessor.from_pretrained(folder)
        self.input_names = set(inspect.signature(self.net.forward).parameters)

    def collate(self, examples: Sequence[Example], rng: np.random.Generator) -> dict[str, Any]:
        """Return the inputs of the model, and a seed.

        With the seed, dropout and denoising queries are the same when a run is resumed.
        """
        images = []
        labels = []
        for k, example in enumerate(examples):
            images.append(Image.fromarray(example.image))
            labels.append({"image_id": k, "annotations": make_annotations(example)})
        inputs = self.processor(images=images, annotations=labels, return_tensors="pt")
        batch = {name: inputs[name] for name in inputs if name in self.input_names}
        batch["seed"] = int(rng.integers(MAX_SEED))
        return batch

    def forward(self, batch: dict[str, Any]) -> Tensor:
        device = self.net.device
        torch.manual_seed(batch["seed"])
        inputs = {}
        for name, value in batch.items():
            if name not in ("seed", "labels"):
                inputs[name] = value.to(device)
        labels = []
        for label in batch["labels"]:
            labels.append({name: label[name].to(device) for name in ("class_labels", "boxes")})
        loss: Tensor = self.net(**inputs, labels=labels).loss
        return loss

    @cached_property
    def detection_pipeline(self) -> Any:
        """The pipeline, built at its first use: by then, the model is on its device."""
        return pipeline(
            "object-detection",
            model=self.net,
            image_processor=self.processor,
            device=self.net.device,
        )

    def detect(self, image: ImageArray) -> Detections:
        return detect_with(self.detection_pipeline, [image])[0]

    def export(self, folder: Path) -> None:
        """Write the model and its image processor."""
        self.net.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def load_model(folder: Path, spec: Spec) -> Any:
    """Return the model of a folder, or a new one of its architecture, for the job's categories.

    Raises:
        InputError: it is not a detector, or needs a package that is not installed.
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
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise InputError(
            f"init: {spec.init}: cannot be loaded as a detector of transformers: {reason}"
        ) from None


def make_annotations(example: Example) -> list[dict[str, Any]]:
    """Return annotations in COCO's format (bbox xywh in px) of the boxes in a crop.

    Boxes with at least half of their area in the crop are kept, and clipped to it.
    """
    height, width = example.image.shape[:2]
    clipped = clip_boxes(example.boxes, width, height)
    inside = shares_inside(example.boxes.astype(np.float64), [(0, 0, width, height)])[:, 0]
    boxes = xyxy_to_xywh(clipped)
    areas = box_areas(clipped)
    annotations = []
    for i in np.flatnonzero(inside >= MIN_SHARE_INSIDE).tolist():
        annotations.append(
            {
                "bbox": boxes[i].tolist(),
                "area": float(areas[i]),
                "category_id": example.category_indices[i],
                "iscrowd": 0,
            }
        )
    return annotations
