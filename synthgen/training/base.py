"""Training of checkpoints: what every task has in common.

Each folder beside this file is one task: a `Spec` whose `task` is its name. `loop.py` trains
whatever a task loads.
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
    """What a task trains: a torch module whose forward pass returns the loss of one batch.

    Its parameters that require gradients are trained; its state is saved with the state of the run.
    A trainee whose parameters do not share one learning rate has a method `parameter_groups()`: the
    optimiser's groups, each with a `rate` that multiplies the learning rate.
    """

    def batches(self, start: int, rank: int) -> Iterator[Any]:
        """Yield the batches of the steps from `start`, each a function of seed, step and rank."""

    def __call__(self, batch: Any) -> "torch.Tensor":
        """Return the loss of one batch, computed on the device of the parameters."""

    def measure(self) -> dict[str, float]:
        """Return figures measured on held-out data."""

    def render_sheet(self) -> "Image.Image":
        """Return an image that shows what the current weights produce."""

    def export(self, folder: Path) -> None:
        """Write the checkpoint that a recipe can name as its model."""


class DataSpec(SpecModel):
    """The data of a training: scenes pasted on the fly, or a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pasted: str = Field(
        "train",
        description="Source of pasted scenes; train or heldout: the assets that ship with "
        "synthgen; otherwise a folder with cutouts/ and grounds/.",
    )
    shards: str | None = Field(
        None,
        description="Output folder of `synthgen run` or `synthgen import`, which is read instead "
        "of pasting scenes.",
    )
    coco: str | None = Field(
        None, description="COCO's instances.json, which is read instead of pasting scenes."
    )
    jsonl: str | None = Field(
        None,
        description="A .jsonl or .parquet file with one row for each image, which is read "
        "instead of pasting scenes.",
    )
    images: str | None = Field(
        None,
        description="Folder of the images of `coco` or `jsonl`; null: the usual place beside the "
        "file.",
    )
    caption_column: str = Field("caption", description="Column of `jsonl` with the captions.")
    image_column: str = Field("file_name", description="Column of `jsonl` with the image files.")
    annotation_column: str = Field(
        "custom_annotation",
        description="Column of `jsonl` with texts `label_ID_bbox_X_Y_W_H`; without this column, "
        "plain boxes are read.",
    )
    on_bad: Literal["refuse", "skip"] = Field(
        "refuse",
        description="What happens to unusable entries; refuse: they are an error; skip: they are "
        "left out and counted.",
    )
    resize: bool | None = Field(
        None,
        description="Whether images are resized so that the shorter side is `side`; null: only "
        "those of `coco` and `jsonl`.",
    )
    flip: float = Field(
        0,
        ge=0,
        le=1,
        description="Probability that an image of a dataset is mirrored, with its boxes.",
    )
    side: int = Field(
        512,
        ge=64,
        le=4096,
        description="Side of a pasted scene in px; larger images of a dataset are cropped to it.",
    )
    sizes: tuple[float, float] | None = Field(
        None,
        description="Smallest and largest side of a pasted scene's boxes in px (some are up to "
        "24 px larger); null: mostly 48 to 80 px, some 40 to 210 px.",
    )
    scenes: int = Field(
        160, ge=1, description="Number of scenes in the pool that batches are sampled from."
    )
    fresh: int = Field(
        8, ge=0, description="Number of scenes of the pool that are replaced every 50 steps."
    )
    workers: int = Field(
        0,
        ge=0,
        description="Number of processes that generate or read scenes; 0: the training process "
        "does it.",
    )
    hold_out: int | None = Field(
        None,
        ge=2,
        description="Samples of `shards` whose index is a multiple of this number are held out "
        "for measurements; null: none.",
    )
    mixed_with: str | None = Field(None, description="Output folder of a second dataset to mix in.")
    mixed_share: float = Field(
        0.5, ge=0, le=1, description="Share of the scenes that come from `mixed_with`."
    )

    @property
    def source(self) -> str | None:
        """The dataset; None if scenes are pasted."""
        return self.shards or self.coco or self.jsonl

    @property
    def resizes(self) -> bool:
        """Whether images are resized so that their shorter side is `side`."""
        return self.shards is None if self.resize is None else self.resize

    @model_validator(mode="after")
    def check_single_source(self) -> "DataSpec":
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
    def check_folders_and_sizes(self) -> "DataSpec":
        for key in ("shards", "mixed_with"):
            folder = getattr(self, key)
            if folder is not None and not list(Path(folder).glob("shards/*.tar")):
                raise ValueError(
                    f"{key}: {folder!r} holds no shards/*.tar; give the output folder of a "
                    "`synthgen run`"
                )
        if self.hold_out is not None and self.shards is None:
            raise ValueError(
                "hold_out: is for `shards`; pasted scenes have held-out scenes of their own"
            )
        if self.sizes is not None:
            largest = self.side / 2 - 24
            if not 8 <= self.sizes[0] <= self.sizes[1] <= largest:
                raise ValueError(
                    f"sizes: {list(self.sizes)} must be two sides from 8 px to {largest:g} px "
                    "(half of `side` less 24)"
                )
        if self.pasted not in ("train", "heldout") and not (Path(self.pasted) / "cutouts").is_dir():
            raise ValueError(
                f"pasted: {self.pasted!r} is not train or heldout, nor a folder that holds "
                "cutouts/ and grounds/"
            )
        return self


class TrainOutputSpec(SpecModel):
    """Where a training is written, and how often its state is saved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, description="Output folder.")
    every: int = Field(
        250,
        ge=1,
        description="Number of steps between two saved states, sample sheets and loss plots.",
    )


class TaskSpec(SpecModel):
    """A training job: the keys of all tasks.

    Attributes:
        TRAINEE: import path of the class that is trained; it is constructed with the spec.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    TRAINEE: ClassVar[str]

    version: Literal[1]
    name: str = Field(pattern=r"^[\w.-]+$")
    task: str
    seed: int = Field(0, ge=0, lt=2**63)
    steps: int = Field(ge=1, description="Number of steps of the optimiser.")
    batch_size: int = Field(8, ge=1, description="Number of samples in a batch, in each process.")
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(
        100, ge=1, description="Number of steps over which the learning rate rises."
    )
    decay: float = Field(
        0.4,
        ge=0,
        le=1,
        description="Share of the steps, at the end, over which the learning rate falls to 0.",
    )
    weight_decay: float = Field(1e-4, ge=0)
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of the moving average of the weights; null: no average.",
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = Field(
        "auto",
        description="Precision in which networks predict; the weights that are trained are "
        "float32. auto: bf16 for the UNet on a CPU with AMX, otherwise no. fp16: on a GPU only.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Compute the UNet's activations twice instead of keeping them: less memory, "
        "about a third more time.",
    )
    data: DataSpec = DataSpec()
    output: TrainOutputSpec

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step: a linear rise, a plateau, a linear fall to 0."""
        falling = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, falling)

    def check(self) -> list[str]:
        """Return the problems of this job, each as `key: reason`."""
        return []

    def load(self) -> Trainee:
        """Build what is trained."""
        trainee: Trainee = load_implementation(self.TRAINEE)(self)
        return trainee
