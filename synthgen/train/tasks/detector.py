"""Train a detector: the recipe."""

from typing import Literal

from pydantic import Field

from synthgen.train import TaskSpec, Trainee


class Spec(TaskSpec):
    """A small detector that counts (`synthgen.verify.centernet`), from scratch, on scenes or on a dataset's shards."""

    task: Literal["detector"] = "detector"
    channels: tuple[int, int, int, int] = Field((16, 32, 64, 96), description="at 1/2, 1/4, 1/8 and 1/16 of the size")
    crop: int = Field(256, ge=64, multiple_of=32, description="side of a training crop, px")
    categories: tuple[str, ...] = Field(("ball", "cat", "dog", "tree"), min_length=1, description="what it finds")

    def check(self) -> list[str]:
        too_large = self.crop > self.data.side
        return [f"crop: {self.crop} px is larger than data.side, {self.data.side} px"] if too_large else []

    def load(self) -> Trainee:
        from synthgen.train.detector import DetectorTrainee

        return DetectorTrainee(self)
