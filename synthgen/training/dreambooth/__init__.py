"""Teach a checkpoint new classes from a few images each (DreamBooth, arXiv 2208.12242): the recipe.

A class is a concept: an identifier such as <rex>, and the category that it belongs to.
"""

import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from PIL import Image
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from synthgen.annotations import DEFAULT_PHRASE
from synthgen.pipelines.diffusion.sizes import compute_vae_factor, read_config
from synthgen.pipelines.diffusion.sources import CONCEPTS, find_model
from synthgen.scenes.scene import list_image_files
from synthgen.spec import SpecModel
from synthgen.training.base import TaskSpec
from synthgen.training.lora_spec import LoraSpec
from synthgen.training.vae import check_model

MIN_SIDE = 16  # px of an image
MAX_SIZE = 2.5  # longer side of a cut-out, in windows: windows of larger ones are not trained on
MIN_OPAQUE = 0.02  # opaque share of a cut-out
USUAL_SIZES = (0.7, 1.3)  # smallest and largest longer side of a cut-out, in windows


def _check_category_prompts(prompts: tuple[str, ...]) -> tuple[str, ...]:
    for prompt in prompts:
        try:
            names_category = "rex" in prompt.format(category="rex")
        except (KeyError, IndexError, ValueError):
            names_category = False
        if not names_category:
            raise ValueError(f"{prompt!r}: must name {{category}}, and nothing else is replaced")
    return prompts


class Concept(SpecModel):
    """A class and its identifier."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    identifier: str = Field(
        pattern=r"^<[a-z0-9_-]+>$", description="New word that names the class, such as <rex>."
    )
    category: str = Field(
        pattern=r"^[^\W_][\w -]*$",
        description="Category of the class: a word that the checkpoint knows, such as dog.",
    )

    @property
    def name(self) -> str:
        """The class as a category of a layout: "<rex> dog"."""
        return f"{self.identifier} {self.category}"


class NewConcept(Concept):
    """A class that is trained."""

    images: str = Field(
        min_length=1,
        description="Folder of cut-outs (with transparency) or of photographs that show only the "
        "class.",
    )

    @model_validator(mode="after")
    def check_images(self) -> "NewConcept":
        files = self.files
        if not files:
            raise ValueError(f"images: {self.images!r} is not a folder with images")
        opaque = [file.name for file in files if not is_cutout(file)]
        if opaque and len(opaque) < len(files):
            raise ValueError(
                f"images: {self.images!r} mixes cut-outs and photographs ({opaque[0]} is opaque); "
                "give one kind"
            )
        return self

    @property
    def files(self) -> list[Path]:
        """The image files of the class."""
        return list_image_files(Path(self.images))


def is_cutout(file: Path) -> bool:
    """Return whether an image has transparent pixels.

    Raises:
        ValueError: it cannot be read, is too small, or is almost completely transparent.
    """
    try:
        with Image.open(file) as image:
            image.load()
            width, height = image.size
            alpha = image.convert("RGBA").getchannel("A")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"images: {str(file)!r} is not an image that can be read ({error})"
        ) from None
    if min(width, height) < MIN_SIDE:
        raise ValueError(
            f"images: {str(file)!r} is {width} x {height} px; give at least {MIN_SIDE} px a side"
        )
    histogram = alpha.histogram()
    opaque = sum(histogram[128:]) / (width * height)
    if opaque < MIN_OPAQUE:
        raise ValueError(
            f"images: {str(file)!r} is transparent but for {opaque:.1%}; it must show the object"
        )
    return sum(histogram[:128]) > 0


class Spec(TaskSpec):
    """New classes, each with an identifier, from a few images each.

    Classes of earlier trainings of the checkpoint are kept.
    """

    TRAINEE: ClassVar[str] = "synthgen.training.dreambooth.trainee:DreamBoothTrainee"

    task: Literal["dreambooth"] = "dreambooth"
    init: str = Field(
        description="Checkpoint to start from, in Stable Diffusion format; it may have classes "
        "of earlier trainings."
    )
    concepts: tuple[NewConcept, ...] = Field(min_length=1, description="New classes.")
    sizes: tuple[float, float] | None = Field(
        None,
        description="Longer side of a pasted cut-out in px, [smallest, largest]; null: 0.7 to "
        "1.3 times the side of the checkpoint's windows.",
    )
    word_rate: float = Field(
        20.0,
        gt=0,
        description="Learning rate of the identifiers' embeddings, as a multiple of "
        "`learning_rate`.",
    )
    lora: LoraSpec | None = Field(
        None, description="Keys of a LoRA; null: all weights of the UNet are trained."
    )
    train_text_encoder: bool = Field(
        False,
        description="Whether the whole text encoder is trained; false: only the embeddings of "
        "the identifiers.",
    )
    prior_images: int = Field(
        12,
        ge=1,
        description="Number of images for each class that `init` generates for prior preservation.",
    )
    prior_weight: float = Field(
        1.0, ge=0, description="Weight of the prior loss, relative to the loss of the new classes."
    )
    prior_prompts: Annotated[tuple[str, ...], AfterValidator(_check_category_prompts)] = Field(
        (DEFAULT_PHRASE,), min_length=1, description="Prompts of the plain categories."
    )
    prior_steps: int = Field(12, ge=1, description="Number of denoising steps of the prior images.")
    prior_guidance: float = Field(
        3.5, ge=0, description="Scale of classifier-free guidance of the prior images."
    )
    prompt_dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the prior's captions that are replaced by the null prompt.",
    )
    snr_gamma: float | None = Field(
        None,
        gt=0,
        description="Gamma of min-SNR weights (arXiv 2303.09556); null: no weights, because the "
        "noisiest steps decide on colours.",
    )

    def check(self) -> list[str]:
        problems = check_model("init", self.init, unet=True)
        if self.data.shards is not None:
            problems.append(
                "data.shards: not read; the classes come from their own folders, the backgrounds "
                "from data.pasted"
            )
        identifiers = [concept.identifier for concept in self.concepts]
        for identifier in sorted(set(identifiers)):
            if identifiers.count(identifier) > 1:
                problems.append(
                    f"concepts: {identifier} is a duplicate; each class needs its own identifier"
                )
        if problems:
            return problems
        folder = find_model(self.init)
        return [*self.identifier_problems(folder), *self.size_problems(folder)]

    def identifier_problems(self, folder: Path) -> list[str]:
        """Return the identifiers that the checkpoint has already, each as `key: reason`."""
        earlier = {concept.identifier for concept in read_concepts(folder)}
        new = {concept.identifier for concept in self.concepts}
        return [
            f"concepts: {identifier} is a class of {self.init} already; choose another identifier"
            for identifier in sorted(earlier & new)
        ]

    def size_problems(self, folder: Path) -> list[str]:
        """Return the sizes that do not fit the checkpoint, each as `key: reason`."""
        window = read_window_size(folder)
        factor = compute_vae_factor(read_config(folder, "vae"))
        if self.data.side < window or self.data.side % factor:
            return [
                f"data.side: {self.data.side} px must be a multiple of {factor} and at least "
                f"{window} for {self.init}"
            ]
        smallest, largest = self.sizes_px(folder)
        limit = min(float(self.data.side), MAX_SIZE * window)
        if not MIN_SIDE <= smallest <= largest <= limit:
            return [
                f"sizes: [{smallest:g}, {largest:g}] must be two sides from {MIN_SIDE} to "
                f"{limit:g} px"
            ]
        return []

    def sizes_px(self, folder: Path) -> tuple[float, float]:
        """Return the smallest and largest longer side of a pasted cut-out, px."""
        if self.sizes:
            return self.sizes
        window = read_window_size(folder)
        smallest = max(USUAL_SIZES[0] * window, float(MIN_SIDE))
        largest = min(USUAL_SIZES[1] * window, float(self.data.side))
        return smallest, largest


def read_concepts(folder: Path) -> list[Concept]:
    """Return the classes that a checkpoint has from earlier trainings."""
    path = folder / CONCEPTS
    if not path.is_file():
        return []
    return [Concept.model_validate(entry) for entry in json.loads(path.read_text())]


def read_window_size(folder: Path) -> int:
    """Return the side of the windows that a checkpoint was trained on, px."""
    cells = int(read_config(folder, "unet")["sample_size"])
    return cells * compute_vae_factor(read_config(folder, "vae"))
