"""Teach a checkpoint classes of your own from a few pictures each: the recipe (DreamBooth, arXiv 2208.12242)."""

import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from PIL import Image
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from synthgen.annotations import DEFAULT_PHRASE
from synthgen.pipelines.diffusion.models import CONCEPTS, find_model, read_config, vae_factor
from synthgen.scenes.scene import pictures
from synthgen.spec import SpecModel
from synthgen.training.base import TaskSpec
from synthgen.training.lora_spec import LoraSpec
from synthgen.training.vae import model_problems

LEAST_SIDE = 16  # px of a picture
MOST_WINDOWS = 2.5  # a cut-out's longer side: larger ones have windows that are not trained on
LEAST_OPAQUE = 0.02  # share of a cut-out


def _is_category_prompt(prompts: tuple[str, ...]) -> tuple[str, ...]:
    for prompt in prompts:
        try:
            named = "rex" in prompt.format(category="rex")
        except (KeyError, IndexError, ValueError):
            named = False
        if not named:
            raise ValueError(f"{prompt!r}: must name {{category}}, and nothing else is replaced")
    return prompts


class Concept(SpecModel):
    """A class and the word that it is called by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    identifier: str = Field(pattern=r"^<[a-z0-9_-]+>$", description="a new word, such as <rex>")
    category: str = Field(
        pattern=r"^[^\W_][\w -]*$",
        description="what it is one of: a word that the checkpoint knows, such as dog",
    )

    @property
    def name(self) -> str:
        """As a category of a layout: "<rex> dog"."""
        return f"{self.identifier} {self.category}"


class NewConcept(Concept):
    """A class to learn."""

    images: str = Field(
        min_length=1,
        description="folder of cut-outs (with transparency), or of photographs, of it alone",
    )

    @model_validator(mode="after")
    def can_be_read(self) -> "NewConcept":
        files = pictures(Path(self.images))
        if not files:
            raise ValueError(f"images: {self.images!r} is not a folder with pictures")
        kinds = {file.name: is_cutout(file) for file in files}
        if len(set(kinds.values())) > 1:
            whole = next(name for name, cut in kinds.items() if not cut)
            raise ValueError(
                f"images: {self.images!r} mixes cut-outs and photographs ({whole} is opaque); give one kind"
            )
        return self

    @property
    def files(self) -> list[Path]:
        return pictures(Path(self.images))


def is_cutout(file: Path) -> bool:
    """Whether a picture has transparent parts.

    Raises:
        ValueError: it cannot be read, is too small, or shows next to nothing.
    """
    try:
        with Image.open(file) as image:
            image.load()
            size, alpha = image.size, image.convert("RGBA").getchannel("A")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"images: {str(file)!r} is not a picture that can be read ({error})"
        ) from None
    if min(size) < LEAST_SIDE:
        raise ValueError(
            f"images: {str(file)!r} is {size[0]} x {size[1]} px; give at least {LEAST_SIDE} px a side"
        )
    opaque = sum(alpha.histogram()[128:]) / (size[0] * size[1])
    if opaque < LEAST_OPAQUE:
        raise ValueError(
            f"images: {str(file)!r} is transparent but for {opaque:.1%}; it must show the object"
        )
    return sum(alpha.histogram()[:128]) > 0


class Spec(TaskSpec):
    """New classes, each a word of its own, from a few pictures; classes that the checkpoint learnt earlier are kept."""

    TRAINEE: ClassVar[str] = "synthgen.training.dreambooth.trainee:DreamBoothTrainee"

    task: Literal["dreambooth"] = "dreambooth"
    init: str = Field(
        description="checkpoint in Stable Diffusion format; it may have learnt other classes in this way before"
    )
    concepts: tuple[NewConcept, ...] = Field(min_length=1, description="the new classes")
    sizes: tuple[float, float] | None = Field(
        None,
        description="longer side of a pasted cut-out, px, [least, most]; null: 0.7 to 1.3 of the checkpoint's windows",
    )
    word_rate: float = Field(
        20.0,
        gt=0,
        description="learning rate of the new words' embeddings against that of all else",
    )
    lora: LoraSpec | None = Field(None, description="null: all weights of the UNet change")
    train_text_encoder: bool = Field(
        False, description="all of it; the embeddings of the new words are trained in any case"
    )
    prior_images: int = Field(
        12, ge=1, description="pictures that `init` paints of each class that is to stay as it is"
    )
    prior_weight: float = Field(
        1.0, ge=0, description="of their loss against that of the new classes"
    )
    prior_prompts: Annotated[tuple[str, ...], AfterValidator(_is_category_prompt)] = Field(
        (DEFAULT_PHRASE,), min_length=1, description="what the plain categories are painted as"
    )
    prior_steps: int = Field(12, ge=1, description="denoising steps")
    prior_guidance: float = Field(3.5, ge=0, description="classifier-free guidance")
    prompt_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of the prior's captions replaced by the null prompt"
    )
    snr_gamma: float | None = Field(
        None,
        gt=0,
        description="min-SNR weighting, arXiv 2303.09556; null: none, for the noisiest steps decide on colours",
    )

    def check(self) -> list[str]:
        problems = model_problems("init", self.init, unet=True)
        if self.data.shards is not None:
            problems.append(
                "data.shards: not read; the classes come from their own folders, the grounds from data.pasted"
            )
        names = [c.identifier for c in self.concepts]
        twice = sorted({name for name in names if names.count(name) > 1})
        problems += [
            f"concepts: {name} stands twice; each class needs a word of its own" for name in twice
        ]
        folder = None if problems else find_model(self.init)
        return (
            problems
            if folder is None
            else [*self.model_problems(folder), *self.size_problems(folder)]
        )

    def model_problems(self, folder: Path) -> list[str]:
        problems = []
        known = {c.identifier for c in earlier_concepts(folder)} & {
            c.identifier for c in self.concepts
        }
        problems += [
            f"concepts: {name} is known to {self.init} already; choose another word"
            for name in sorted(known)
        ]
        return problems

    def size_problems(self, folder: Path) -> list[str]:
        window, (low, high) = window_of(folder), self.sizes_px(folder)
        factor = vae_factor(read_config(folder, "vae"))
        if self.data.side < window or self.data.side % factor:
            return [
                f"data.side: {self.data.side} px must be a multiple of {factor} and at least {window} for {self.init}"
            ]
        most = min(float(self.data.side), MOST_WINDOWS * window)
        if not LEAST_SIDE <= low <= high <= most:
            return [
                f"sizes: [{low:g}, {high:g}] must be two sides from {LEAST_SIDE} to {most:g} px"
            ]
        return []

    def sizes_px(self, folder: Path) -> tuple[float, float]:
        """Least and most of a pasted cut-out's longer side."""
        window = window_of(folder)
        return self.sizes or (
            max(0.7 * window, float(LEAST_SIDE)),
            min(1.3 * window, float(self.data.side)),
        )


def earlier_concepts(folder: Path) -> list[Concept]:
    """The classes that a checkpoint learnt in earlier trainings."""
    path = folder / CONCEPTS
    return (
        [Concept.model_validate(entry) for entry in json.loads(path.read_text())]
        if path.is_file()
        else []
    )


def window_of(folder: Path) -> int:
    """Side of the windows that a checkpoint was trained at, px."""
    return int(read_config(folder, "unet")["sample_size"]) * vae_factor(read_config(folder, "vae"))
