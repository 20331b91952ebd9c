"""The recipe of annotations as an image mask. The pipeline itself is in `pipeline.py`."""

from typing import ClassVar, Literal

from pydantic import Field

from synthgen.dataset.categories import find_category_ids
from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.diffusion.box_annotations import AnnotatedSpec
from synthgen.scenes.scene import SceneSpec


class Spec(AnnotatedSpec):
    """Start denoising from boxes filled with grey on black, or let a trained checkpoint read them.

    A trained checkpoint reads the mask's latents beside its own; any other starts from the noised
    mask (img2img).
    """

    PIPELINE: ClassVar[str] = "synthgen.pipelines.annotation_mask.pipeline:AnnotationMaskPipeline"

    method: Literal["annotation_mask"] = "annotation_mask"
    scheduler: Literal["dpm++", "unipc", "ddim", "euler"] | None = Field(
        "dpm++", description="Scheduler; null: that of the checkpoint."
    )
    strength: float = Field(
        0.75,
        gt=0,
        le=1,
        description="Share of the steps that run, starting from the noised mask; "
        "1: start from noise.",
    )
    tile: int | None = Field(
        None,
        ge=8,
        description="Side in px of the tiles in which the canvas is denoised; null: no tiles.",
    )
    label_range: int = Field(90, ge=1, description="Category id that the mask shows as white.")

    @property
    def reads_masks(self) -> bool:
        return True

    @property
    def starts_within_schedule(self) -> bool:
        return self.strength < 1

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = super().check(sampler, scene)
        if problems:
            return problems
        for name, label in find_category_ids(sampler.names(), self.categories).items():
            if label > self.label_range:
                problems.append(
                    f"label_range: {self.label_range} must be at least {label}, "
                    f"the category id of {name!r}"
                )
        return problems
