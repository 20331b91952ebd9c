"""Annotations as a painted mask: the recipe. The pipeline itself is in `pipeline.py`."""

from typing import ClassVar, Literal

from pydantic import Field

from synthgen.dataset.categories import category_ids
from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.diffusion.box_annotations import AnnotatedSpec
from synthgen.scenes.scene import SceneSpec


class Spec(AnnotatedSpec):
    """Boxes painted grey on black, where denoising starts (img2img), or read beside the latents by a trained checkpoint."""

    PIPELINE: ClassVar[str] = "synthgen.pipelines.annotation_mask.pipeline:AnnotationMaskPipeline"

    method: Literal["annotation_mask"] = "annotation_mask"
    scheduler: Literal["dpm++", "unipc", "ddim", "euler"] | None = Field(
        "dpm++", description="null: the checkpoint's"
    )
    strength: float = Field(
        0.75,
        gt=0,
        le=1,
        description="share of the steps that run, from the noised mask on; 1: from noise",
    )
    tile: int | None = Field(
        None,
        ge=8,
        description="px; the canvas is denoised in tiles of this side; null: in one piece",
    )
    label_range: int = Field(90, ge=1, description="category id that is painted white")

    @property
    def reads_masks(self) -> bool:
        return True

    @property
    def starts_within(self) -> bool:
        return self.strength < 1

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = super().check(sampler, scene)
        beyond = {} if problems else category_ids(sampler.names(), self.categories)
        for name, label in beyond.items():
            if label > self.label_range:
                problems.append(
                    f"label_range: {self.label_range} must be at least {label}, the category id of {name!r}"
                )
        return problems
