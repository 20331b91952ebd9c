"""Mixture of Diffusers over a layout: the recipe. The pipeline itself is in `pipeline.py`."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from synthgen.pipelines.diffusion.models import LayoutModelSpec

Mask = Literal["box", "gaussian", "quartic", "constant"]


def _inside_unit(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] <= value[1] <= 1:
        raise ValueError(
            f"[{value[0]:g}, {value[1]:g}] must be two shares of the steps in [0, 1], least first"
        )
    return value


Interval = Annotated[tuple[float, float], AfterValidator(_inside_unit)]


class Spec(LayoutModelSpec):
    """One process a box plus tiled ones for the background, merged at every step (Mixture of Diffusers, arXiv 2302.02412)."""

    PAINTER: ClassVar[str] = "synthgen.pipelines.mixture.painter:MixturePainter"
    PIPELINE: ClassVar[str] = "synthgen.pipelines.mixture.pipeline:MixturePipeline"

    method: Literal["mixture"] = "mixture"
    guidance_scale: float = Field(
        7.5, ge=0, description="classifier-free guidance in the windows of the boxes"
    )
    background_guidance_scale: float | None = Field(
        None, ge=0, description="the same for the background; null: equal"
    )
    guidance_interval: Interval = Field(
        (0.0, 1.0),
        description="share of the steps, [from, to], that are guided (arXiv 2404.07724); the others cost half",
    )
    context: float = Field(
        0.1, ge=0, le=4, description="share of a box's side that its window adds on each side"
    )
    window: int | None = Field(
        None, ge=8, description="least window side, px; null: what the checkpoint was trained at"
    )
    background_window: int | None = Field(
        None, ge=8, description="side of the background's windows, px; null: as `window`"
    )
    background_overlap: float = Field(
        0.25, ge=0, le=0.9, description="share of a background window that the next one covers"
    )
    background_weight: float = Field(
        0.05, gt=0, description="weight of the background against 1 inside a box"
    )
    mask: Mask = Field(
        "box",
        description="weight over an object's window; box: 1 inside the box, falling off outside",
    )

    @property
    def paints_into_pictures(self) -> bool:
        return True
