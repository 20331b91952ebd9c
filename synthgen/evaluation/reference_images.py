"""Real images that generated images are compared with."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthgen.dataset.info import read_info
from synthgen.evaluation.labelled_images import read_labelled_images
from synthgen.layouts.base import Layout
from synthgen.scenes.scene import list_image_files
from synthgen.storage.location import open_store
from synthgen.verification import efficientnet
from synthgen.verification.clip import Spec as ClipSpec


@dataclass(frozen=True)
class Reference:
    """Real images to compare with.

    Attributes:
        source: a synthgen dataset, or a folder of images.
        encoder: computes the features: efficientnet-lite0, or the folder or Hub id of a
            transformers network.
        objects: compare the crops of the boxes instead of whole images; the source must be a
            dataset then.
    """

    source: Path
    encoder: str = efficientnet.NAME
    objects: bool = False

    def check(self) -> list[str]:
        """Return the problems of the reference, each as `option: reason`.

        Raises:
            InputError: the encoder cannot be found.
        """
        is_dataset = read_info(open_store(self.source)) is not None
        problems = []
        if not is_dataset and not list_image_files(self.source):
            problems.append(
                f"--reference: {str(self.source)!r} is neither a synthgen dataset "
                "nor a folder of images"
            )
        elif not is_dataset and self.objects:
            problems.append(
                f"--objects: {str(self.source)!r} is a folder of images; only a dataset has boxes"
            )
        if self.encoder != efficientnet.NAME:
            ClipSpec(model=self.encoder).folder()
        else:
            reason = efficientnet.explain_missing()
            if reason:
                problems.append(f"--encoder: {reason}")
        return problems

    def read_images(self, limit: int | None) -> Iterator[tuple[NDArray[np.uint8], Layout | None]]:
        """Yield images (H, W, 3), with their boxes if they are known.

        Args:
            limit: read so many images; None: all.
        """
        store = open_store(self.source)
        if read_info(store) is not None:
            for _, image, layout in read_labelled_images(store, limit):
                yield image, layout
            return
        for path in list_image_files(self.source)[:limit]:
            with Image.open(path) as file:
                yield np.array(file.convert("RGB")), None
