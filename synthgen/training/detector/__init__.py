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
    read_model_config,
    weights_problem,
)

CROP = 256  # px, of the small detector
OWN = "synthgen.training.detector.centernet:CenterNetTrainee"
OF_TRANSFORMERS = "synthgen.training.detector.transformers_detector:TransformersTrainee"


class Spec(TaskSpec):
    """A detector, on scenes or on a dataset's shards: the small one that counts, or one of transformers."""

    task: Literal["detector"] = "detector"
    init: str | None = Field(
        None,
        description="detector to go on with: centernet-tiny, or a folder or Hub id of one of transformers; null: a new one",
    )
    pretrained: bool = Field(
        True, description="false: of a transformers `init` its architecture alone, with new weights"
    )
    channels: tuple[int, int, int, int] = Field(
        (16, 32, 64, 96), description="of a new small one at 1/2, 1/4, 1/8 and 1/16 of the size"
    )
    crop: int | None = Field(
        None,
        ge=64,
        multiple_of=32,
        description="side of a training crop, px; null: 256, or whole pictures for one of transformers",
    )
    categories: tuple[str, ...] = Field(
        ("ball", "cat", "dog", "tree"), min_length=1, description="what it finds"
    )

    def folder(self) -> Path | None:
        """Where `init` is; None without one.

        Raises:
            ModelNotFoundError: it cannot be had.
        """
        if self.init is None:
            return None
        return find_folder(self.init, FILES if self.pretrained else ["*.json", "*.txt"])

    def check(self) -> list[str]:
        try:
            folder = self.folder()
            own = is_own(folder)
        except ModelNotFoundError as error:
            return [f"init: {error}"]
        side = self.crop or (CROP if own else 0)
        problems = (
            [f"crop: {side} px is larger than data.side, {self.data.side} px"]
            if side > self.data.side
            else []
        )
        if own and not self.pretrained:
            problems.append(
                "pretrained: false is for one of transformers; a new small detector is `init: null`"
            )
        reason = weights_problem(folder) if folder is not None and self.pretrained else None
        if reason is not None:
            problems.append(f"init: {reason}; or say `pretrained: false`")
        if (
            not own
            and folder is not None
            and not any((folder / name).is_file() for name in SETTINGS)
        ):
            problems.append(
                f"init: {folder} has no {SETTINGS[0]}, the settings of its image processor"
            )
        return problems

    def load(self) -> Trainee:
        folder = self.folder()
        own = folder is None or is_own(folder)
        trainee: Trainee = load_implementation(OWN if own else OF_TRANSFORMERS)(self, folder)
        return trainee


def is_own(folder: Path | None) -> bool:
    """Whether a detector is the project's own small one."""
    return folder is None or "categories" in read_model_config(folder)
