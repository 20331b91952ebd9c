"""The recipe of Mixture of Diffusers over a layout. The pipeline itself is in `pipeline.py`."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from synthgen.pipelines.diffusion.models import LayoutModelSpec

Mask = Literal["box", "gaussian", "quartic", "constant"]


def _check_interval(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] <= value[1] <= 1:
        raise ValueError(
            f"[{value[0]:g}, {value[1]:g}] must be two shares of the steps in [0, 1], least first"
        )
    return value


Outset = Annotated[float, Field(gt=-0.5, le=0.5)]
Interval = Annotated[tuple[float, float], AfterValidator(_check_interval)]


class Spec(LayoutModelSpec):
    """Denoise a window for each box and tiles for the background, and merge them at every step.

    This is Mixture of Diffusers (arXiv 2302.02412).
    """

    PAINTER: ClassVar[str] = "synthgen.pipelines.mixture.painter:MixturePainter"
    PIPELINE: ClassVar[str] = "synthgen.pipelines.mixture.pipeline:MixturePipeline"

    method: Literal["mixture"] = "mixture"
    guidance_scale: float = Field(
        7.5, ge=0, description="Scale of classifier-free guidance in the windows of the boxes."
    )
    background_guidance_scale: float | None = Field(
        None,
        ge=0,
        description="Guidance scale in the windows of the background; null: as `guidance_scale`.",
    )
    guidance_interval: Interval = Field(
        (0.0, 1.0),
        description="Steps with guidance, as shares [start, stop) of all steps (arXiv 2404.07724); "
        "the other steps take half the time.",
    )
    context: float = Field(
        0.1,
        ge=0,
        le=4,
        description="How far a window extends beyond its box on each side, as a share of the box's "
        "side.",
    )
    outset: tuple[Outset, Outset, Outset, Outset] = Field(
        (0.0, 0.0, 0.0, 0.0),
        description="Shares of a box's width or height by which its left, top, right and bottom "
        "edges move outwards while its object is generated. The label does not change. It corrects "
        "a checkpoint whose objects end before the edges of their boxes.",
    )
    window: int | None = Field(
        None,
        ge=8,
        description="Minimum side of a box's window in px; null: the size that the checkpoint was "
        "trained at.",
    )
    background_window: int | None = Field(
        None, ge=8, description="Side of the windows of the background in px; null: as `window`."
    )
    background_overlap: float = Field(
        0.25,
        ge=0,
        le=0.9,
        description="Share of a background window that the next window overlaps.",
    )
    background_weight: float = Field(
        0.05, gt=0, description="Weight of the windows of the background; a box has weight 1."
    )
    mask: Mask = Field(
        "box",
        description="Weights over the window of a box; box: 1 in the box, decreasing outside it.",
    )

    @property
    def accepts_backgrounds(self) -> bool:
        return True
