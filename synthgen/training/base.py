"""Training of checkpoints: what every task has in common.

Each folder beside this file is one task: a `Spec` whose `task` names it. `loop.py` trains whatever a task loads.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import ConfigDict, Field, model_validator

from synthgen.spec import SpecModel, load_implementation

if TYPE_CHECKING:
    import torch
    from PIL import Image


class Trainee(Protocol):
    """What a task trains: a torch module whose forward is the loss of one batch.

    Its parameters that require gradients are trained; its state is what a checkpoint of the run holds. A trainee whose parameters
    do not all learn at one rate has a `groups()`: the optimiser's groups, each with a `rate` that multiplies the learning rate.
    """

    def batches(self, start: int, rank: int) -> Iterator[Any]:
        """The batches of the steps from `start` on: each a function of the seed, the step and the rank alone."""

    def __call__(self, batch: Any) -> "torch.Tensor":
        """The loss of one batch, and all that is computed for it on the device of the parameters."""

    def measure(self) -> dict[str, float]:
        """Figures on held-out data."""

    def sheet(self) -> "Image.Image":
        """A picture that shows what has been learnt."""

    def export(self, folder: Path) -> None:
        """Write what a recipe can name as its model."""


class DataSpec(SpecModel):
    """What is trained on: scenes pasted on the fly, or a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pasted: str = Field(
        "train", description="train | heldout: what ships; or a folder with cutouts/ and grounds/"
    )
    shards: str | None = Field(
        None, description="output folder of `synthgen run` or `import` to stream instead of pasting"
    )
    coco: str | None = Field(None, description="COCO's instances.json to train on instead")
    jsonl: str | None = Field(
        None, description="JSON lines (or a Parquet table) to train on instead, a picture a row"
    )
    images: str | None = Field(
        None, description="folder of the pictures of coco or jsonl; null: where they usually lie"
    )
    caption_column: str = Field("caption", description="of jsonl")
    image_column: str = Field("file_name", description="of jsonl")
    annotation_column: str = Field(
        "custom_annotation",
        description="of jsonl: `label_ID_bbox_X_Y_W_H` strings; else plain boxes",
    )
    on_bad: Literal["refuse", "skip"] = Field(
        "refuse", description="what becomes of entries that cannot be used; skip: counted"
    )
    resize: bool | None = Field(
        None,
        description="scale pictures so that the shorter side is `side`; null: those of coco and jsonl, not shards",
    )
    flip: float = Field(
        0,
        ge=0,
        le=1,
        description="probability that a picture of a dataset is mirrored, with its boxes",
    )
    side: int = Field(
        512,
        ge=64,
        le=4096,
        description="side of a pasted scene, px; larger pictures of a dataset are cropped to it",
    )
    sizes: tuple[float, float] | None = Field(
        None,
        description="least and greatest side of a pasted scene's boxes, px (some 24 more); null: most 48-80, some 40-210",
    )
    scenes: int = Field(160, ge=1, description="scenes kept at hand; batches are drawn from these")
    fresh: int = Field(8, ge=0, description="scenes replaced by new ones every 50 steps")
    workers: int = Field(0, ge=0, description="processes that make or read scenes; 0: this one")
    hold_out: int | None = Field(
        None,
        ge=2,
        description="samples of `shards` whose index is a multiple of this are kept for figures; null: none are",
    )
    mixed_with: str | None = Field(None, description="output folder of a second dataset, mixed in")
    mixed_share: float = Field(0.5, ge=0, le=1, description="share of its scenes")

    @property
    def source(self) -> str | None:
        """The dataset; null: scenes are pasted."""
        return self.shards or self.coco or self.jsonl

    @property
    def resizes(self) -> bool:
        return self.shards is None if self.resize is None else self.resize

    @model_validator(mode="after")
    def one_source(self) -> "DataSpec":
        given = [key for key in ("shards", "coco", "jsonl") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{given[1]}: {given[0]} is given too; give one of shards, coco and jsonl"
            )
        for key in ("coco", "jsonl"):
            value = getattr(self, key)
            if value is not None and not Path(value).is_file():
                raise ValueError(f"{key}: {value!r}: no such file")
        if self.images is not None and not Path(self.images).is_dir():
            raise ValueError(f"images: {self.images!r}: no such folder")
        return self

    @model_validator(mode="after")
    def is_there(self) -> "DataSpec":
        for key in ("shards", "mixed_with"):
            folder = getattr(self, key)
            if folder is not None and not list(Path(folder).glob("shards/*.tar")):
                raise ValueError(
                    f"{key}: {folder!r} holds no shards/*.tar; give the output folder of a `synthgen run`"
                )
        if self.hold_out is not None and self.shards is None:
            raise ValueError(
                "hold_out: is for `shards`; pasted scenes have held-out ones of their own"
            )
        if self.sizes is not None and not 8 <= self.sizes[0] <= self.sizes[1] <= self.side / 2 - 24:
            raise ValueError(
                f"sizes: {list(self.sizes)} must be two sides from 8 px to {self.side / 2 - 24:g} px (half of `side` less 24)"
            )
        if self.pasted not in ("train", "heldout") and not (Path(self.pasted) / "cutouts").is_dir():
            raise ValueError(
                f"pasted: {self.pasted!r} is not train or heldout, nor a folder that holds cutouts/ and grounds/"
            )
        return self


class TrainOutputSpec(SpecModel):
    """Where the run goes and how often it can be looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, description="output folder")
    every: int = Field(
        250, ge=1, description="steps between two saved states, sample sheets and loss plots"
    )


class TaskSpec(SpecModel):
    """A training job: what all tasks read.

    Attributes:
        TRAINEE: import path of what is trained, a class that takes the spec.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    TRAINEE: ClassVar[str]

    version: Literal[1]
    name: str = Field(pattern=r"^[\w.-]+$")
    task: str
    seed: int = Field(0, ge=0, lt=2**63)
    steps: int = Field(ge=1, description="optimiser steps")
    batch_size: int = Field(8, ge=1, description="a process")
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(100, ge=1, description="steps over which the learning rate rises")
    decay: float = Field(
        0.4, ge=0, le=1, description="share of the steps, at the end, over which it falls to 0"
    )
    weight_decay: float = Field(1e-4, ge=0)
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of the moving average of the weights; null: none"
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = Field("no", description="on a GPU")
    data: DataSpec = DataSpec()
    output: TrainOutputSpec

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, constant, linear to 0 over the last `decay` of the steps."""
        falling = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, falling)

    def check(self) -> list[str]:
        """What stands against this job, each as `key: reason`."""
        return []

    def load(self) -> Trainee:
        """Build what is trained."""
        trainee: Trainee = load_implementation(self.TRAINEE)(self)
        return trainee
