"""Train a detector: the recipe."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from synthgen.pipelines.base import ModelNotFoundError
from synthgen.spec import load_implementation
from synthgen.training.base import TaskSpec, Trainee
from synthgen.verification.model_spec import (
    FILES,
    SETTINGS,
    find_folder,
    find_weights_problem,
    read_model_config,
)

CENTERNET_CROP = 256  # px
CENTERNET_TRAINEE = "synthgen.training.detector.centernet:CenterNetTrainee"
TRANSFORMERS_TRAINEE = "synthgen.training.detector.transformers_detector:TransformersTrainee"


class Spec(TaskSpec):
    """A detector, on scenes or on a dataset's shards: CenterNet, or a detector of transformers."""

    task: Literal["detector"] = "detector"
    init: str | None = Field(
        None,
        description="Detector to start from: centernet-tiny, or a folder or Hub id of a detector "
        "of transformers; null: a new CenterNet.",
    )
    pretrained: bool = Field(
        True,
        description="Whether the weights of `init` are used; false: only its architecture, with "
        "new weights, for a detector of transformers.",
    )
    channels: tuple[int, int, int, int] = Field(
        (16, 32, 64, 96),
        description="Channels of a new CenterNet at 1/2, 1/4, 1/8 and 1/16 of the size.",
    )
    crop: int | None = Field(
        None,
        ge=64,
        multiple_of=32,
        description="Side of a training crop in px; null: 256 for CenterNet, otherwise whole "
        "images.",
    )
    categories: tuple[str, ...] = Field(
        ("ball", "cat", "dog", "tree"),
        min_length=1,
        description="Categories that the detector detects.",
    )

    def folder(self) -> Path | None:
        """Return the folder of `init`; None without one.

        Raises:
            ModelNotFoundError: there is no such folder, and it cannot be downloaded.
        """
        if self.init is None:
            return None
        return find_folder(self.init, FILES if self.pretrained else ["*.json", "*.txt"])

    def check(self) -> list[str]:
        try:
            folder = self.folder()
            centernet = is_centernet(folder)
        except ModelNotFoundError as error:
            return [f"init: {error}"]
        problems = []
        side = self.crop or (CENTERNET_CROP if centernet else 0)
        if side > self.data.side:
            problems.append(f"crop: {side} px is larger than data.side, {self.data.side} px")
        if centernet and not self.pretrained:
            problems.append(
                "pretrained: false is for a detector of transformers; a new CenterNet is "
                "`init: null`"
            )
        if folder is not None and self.pretrained:
            reason = find_weights_problem(folder)
            if reason is not None:
                problems.append(f"init: {reason}; or set `pretrained: false`")
        if folder is not None and not centernet and not has_settings(folder):
            problems.append(
                f"init: {folder} has no {SETTINGS[0]}, the settings of its image processor"
            )
        return problems

    def load(self) -> Trainee:
        folder = self.folder()
        implementation = CENTERNET_TRAINEE if is_centernet(folder) else TRANSFORMERS_TRAINEE
        trainee: Trainee = load_implementation(implementation)(self, folder)
        return trainee


def has_settings(folder: Path) -> bool:
    """Return whether a folder has the settings of an image processor."""
    return any((folder / name).is_file() for name in SETTINGS)


def is_centernet(folder: Path | None) -> bool:
    """Return whether the detector of a folder is the project's CenterNet; None is a new one."""
    return folder is None or "categories" in read_model_config(folder)
