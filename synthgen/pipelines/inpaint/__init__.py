"""The recipe of inpainting: each object in an enlarged crop. The pipeline is in `pipeline.py`."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.diffusion.models import LayoutModelSpec, find_canvas_problems
from synthgen.pipelines.mixture import Interval
from synthgen.scenes.scene import SceneSpec


class Spec(LayoutModelSpec):
    """Generate the background, then each object in an enlarged crop, and fit it into its box.

    Objects have the size that the checkpoint knows, however small their boxes are. An object is
    what differs from the background in its crop. It is moved and stretched so that it fills its
    box, and its mask is the segmentation in the dataset.
    """

    PAINTER: ClassVar[str] = "synthgen.pipelines.inpaint.painter:InpaintPainter"
    PIPELINE: ClassVar[str] = "synthgen.pipelines.inpaint.pipeline:InpaintPipeline"

    method: Literal["inpaint"] = "inpaint"
    scheduler: Literal["dpm++", "unipc", "ddim", "euler", "lcm"] | None = Field(
        "dpm++", description="Scheduler; null: that of the checkpoint."
    )
    guidance_scale: float = Field(
        7.5, ge=0, description="Scale of classifier-free guidance in the crops of the objects."
    )
    guidance_interval: Interval = Field(
        (0.0, 1.0),
        description="Steps with guidance in the crops, as shares [start, stop) of all steps; the "
        "other steps take half the time.",
    )
    background_model: str | None = Field(
        None,
        min_length=1,
        description="Checkpoint of the background, if it is another one than `model`.",
    )
    background_guidance_scale: float | None = Field(
        None,
        ge=0,
        description="Guidance scale of the background; null: as `guidance_scale`. The objects' "
        "categories are added to its negative prompt.",
    )
    background_steps: int | None = Field(
        None, ge=1, le=1000, description="Steps of the background; null: as `steps`."
    )
    background_window: int | None = Field(
        None,
        ge=8,
        description="Side of the windows of the background in px; null: the size that its "
        "checkpoint was trained at.",
    )
    background_overlap: float = Field(
        0.25,
        ge=0,
        le=0.9,
        description="Share of a background window that the next window overlaps.",
    )
    window: int | None = Field(
        None,
        ge=8,
        description="Side to which a crop is enlarged, in px; null: the size that the checkpoint "
        "was trained at.",
    )
    object_share: float = Field(
        0.6, gt=0.1, le=1, description="Share of its crop's side that a box fills."
    )
    outset: float = Field(
        0.12,
        ge=0,
        le=1,
        description="How far the area in which an object is generated extends beyond its box on "
        "each side, as a share of the box's side.",
    )
    strength: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the steps that run in the crops, from the noised background; "
        "1: from noise.",
    )
    statistics: Literal["object", "background"] = Field(
        "object",
        description="Statistics with which the autoencoder decodes an object: its own, or those of "
        "the background. A checkpoint that was trained on windows of larger images, such as "
        "synthgen-tiny, needs those of the background, or dark objects become pale.",
    )
    object_attempts: int = Field(
        2,
        ge=1,
        le=10,
        description="Number of attempts for an object that is not found in its crop.",
    )

    @property
    def accepts_backgrounds(self) -> bool:
        return True

    @property
    def reads_masked_images(self) -> bool:
        return True

    @property
    def starts_within_schedule(self) -> bool:
        return self.strength < 1

    def background_spec(self) -> "Spec | None":
        """Return the recipe of the background's checkpoint; None if it is that of the objects."""
        if self.background_model is None:
            return None
        update = {
            "model": self.background_model,
            "background_model": None,
            "weights": None,
            "revision": None,
            "config": None,
            "lora": None,
        }
        return self.model_copy(update=update)

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = super().check(sampler, scene)
        background = self.background_spec()
        if background is not None:
            for problem in find_canvas_problems(background, sampler.canvas):
                problems.append("background_model: " + problem.partition(": ")[2])
            if scene.backgrounds is not None:
                problems.append(
                    "background_model: your own images (scene.backgrounds) are the backgrounds; "
                    "omit one of the two"
                )
        if self.scale != 1:
            problems.append(
                f"scale: {self.scale} is not 1: inpaint enlarges each object by itself; "
                "omit the key, or set `window`"
            )
        return problems

    def fingerprint(self) -> dict[str, Any]:
        hashes = super().fingerprint()
        background = self.background_spec()
        if background is not None:
            for name, value in background.fingerprint().items():
                hashes[f"background_{name}"] = value
        return hashes

    def licence(self) -> str:
        licences = [super().licence()]
        background = self.background_spec()
        if background is not None:
            licences.append(background.licence())
        return "; ".join(dict.fromkeys(licences))

    def _warn_about_sizes(self, sampler: SamplerSpec) -> list[str]:
        """Return no warning: boxes of all sizes are generated at the size of `window`."""
        return []
