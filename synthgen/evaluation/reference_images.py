"""Real pictures to compare generated ones with."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthgen.dataset.info import read_info
from synthgen.evaluation.labelled_images import read_labelled_images
from synthgen.layouts.base import Layout
from synthgen.scenes.scene import pictures
from synthgen.storage.location import open_store
from synthgen.verification import efficientnet
from synthgen.verification.clip import Spec as ClipSpec


@dataclass(frozen=True)
class Reference:
    """Real pictures to compare with.

    Attributes:
        source: a dataset of ours, or a folder of pictures.
        encoder: efficientnet-lite0, or a folder or Hub id of a network of transformers: what gives the features.
        objects: compare the boxes' crops instead of whole pictures; the source must have boxes, so be a dataset.
    """

    source: Path
    encoder: str = efficientnet.NAME
    objects: bool = False

    def check(self) -> list[str]:
        """What is wrong with it, each as `option: reason`."""
        dataset, problems = read_info(open_store(self.source)) is not None, []
        if not dataset and not pictures(self.source):
            problems.append(
                f"--reference: {str(self.source)!r} is neither a synthgen dataset nor a folder of pictures"
            )
        elif not dataset and self.objects:
            problems.append(
                f"--objects: {str(self.source)!r} is a folder of pictures; boxes are known in a dataset alone"
            )
        if self.encoder == efficientnet.NAME and (reason := efficientnet.missing()):
            problems.append(f"--encoder: {reason}")
        elif self.encoder != efficientnet.NAME:
            ClipSpec(model=self.encoder).folder()  # says what is wrong with the name
        return problems

    def pictures(self, limit: int | None) -> Iterator[tuple[NDArray[np.uint8], Layout | None]]:
        """Pictures (H, W, 3), with their boxes where they are known."""
        if read_info(open_store(self.source)) is not None:
            yield from (
                (image, layout)
                for _, image, layout in read_labelled_images(open_store(self.source), limit)
            )
            return
        for path in pictures(self.source)[:limit]:
            with Image.open(path) as image:
                yield np.array(image.convert("RGB")), None
