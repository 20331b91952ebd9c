"""Annotations as a painted mask: the recipe. The pipeline itself is in `pipeline.py`."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from synthgen.diffusion.annotations import AnnotatedSpec
from synthgen.layouts import SamplerSpec
from synthgen.pipelines import Numerics
from synthgen.scene import SceneSpec
from synthgen.shards.categories import category_ids

if TYPE_CHECKING:
    from synthgen.diffusion.painter import LayoutPainter


class Spec(AnnotatedSpec):
    """Boxes painted grey on black, where denoising starts (img2img), or read beside the latents by a trained checkpoint."""

    method: Literal["annotation_mask"] = "annotation_mask"
    scheduler: Literal["dpm++", "unipc", "ddim", "euler"] | None = Field("dpm++", description="null: the checkpoint's")
    strength: float = Field(0.75, gt=0, le=1, description="share of the steps that run, from the noised mask on; 1: from noise")
    tile: int | None = Field(None, ge=8, description="px; the canvas is denoised in tiles of this side; null: in one piece")
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
                problems.append(f"label_range: {self.label_range} must be at least {label}, the category id of {name!r}")
        return problems

    def load(self, scene: SceneSpec, numerics: Numerics) -> "LayoutPainter":
        from synthgen.diffusion.painter import LayoutPainter
        from synthgen.pipelines.annotation_mask.pipeline import AnnotationMaskPipeline

        return LayoutPainter(AnnotationMaskPipeline, self, numerics)
