"""A scene is one layout and the prompts for its boxes and its background."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import AfterValidator, ConfigDict, Field, field_validator

from synthgen.annotations import DEFAULT_PHRASE
from synthgen.images import DECODE_ERRORS, EIGHT_BIT_MODES, OTHER_COLOUR_MODES
from synthgen.layouts.base import Layout
from synthgen.scenes.camera import CameraSpec
from synthgen.spec import SpecModel

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
Choice = str | tuple[str, ...]
COUNTS = "{counts}, {background}"
ATMOSPHERE = ("weather", "light", "season", "style")


class SceneSpec(SpecModel):
    """The contents of the images, whatever method generates them.

    From a list, one entry is sampled for each box or for each image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    object: Choice = Field(
        DEFAULT_PHRASE, description="Prompt of a box; one of a list is sampled for each box."
    )
    phrases: dict[str, Choice] = Field(
        default={}, description="Prompts of single categories, which replace `object`."
    )
    background: Choice = Field(
        "", description="Prompt of the background; one of a list is sampled for each image."
    )
    negative: str = Field("", description="What the image must not show.")
    backgrounds: str | None = Field(
        None, description="Folder of your own images into which the objects are generated."
    )
    weather: Choice | None = Field(
        None,
        description="Weather, such as 'in thick fog'; one of a list is sampled for each image, as "
        "for light, season and style.",
    )
    light: Choice | None = Field(
        None,
        description="Light, such as 'at dusk'; the words for weather, light, season and style "
        "follow those of the background in this order.",
    )
    season: Choice | None = Field(
        None,
        description="Season, such as 'in autumn'; an empty text in a list adds no words.",
    )
    style: Choice | None = Field(None, description="Style, such as 'a film photograph'.")
    camera: CameraSpec | None = Field(
        None, description="Effects of a camera on the finished images; null: none."
    )

    @field_validator("object", "background", "phrases", *ATMOSPHERE)
    @classmethod
    def check_not_empty(
        cls, value: Choice | dict[str, Choice] | None
    ) -> Choice | dict[str, Choice] | None:
        if value is not None and not all(map(_options, _choices(value))):
            raise ValueError("the list is empty; give at least one prompt")
        return value

    @field_validator("object", "phrases")
    @classmethod
    def check_fields(cls, value: Choice | dict[str, Choice]) -> Choice | dict[str, Choice]:
        for choice in _choices(value):
            for prompt in _options(choice):
                try:
                    prompt.format(category="")
                except (KeyError, IndexError, ValueError):
                    raise ValueError(f"{prompt!r}: only {{category}} is replaced") from None
        return value

    @field_validator("backgrounds")
    @classmethod
    def check_backgrounds(cls, value: str | None) -> str | None:
        if value is None:
            return None
        files = list_image_files(Path(value))
        if not files:
            raise ValueError(
                f"{value!r} is not a folder with images ({', '.join(PICTURE_SUFFIXES)})"
            )
        damage = describe_damage(files)
        if damage:
            raise ValueError(damage)
        return value

    def fingerprint(self) -> dict[str, Any]:
        """Return what pixels depend on beyond the scene's own keys: hashes of files."""
        if self.backgrounds is None:
            return {}
        return {"backgrounds_sha256": hash_images(Path(self.backgrounds))}

    def draw(
        self,
        layout: Layout,
        rng: np.random.Generator,
        atmosphere: np.random.Generator | None = None,
    ) -> "Scene":
        """Sample the scene of one layout: a function of spec, layout and the generators' states.

        The layout's own phrases and caption are kept. Weather, light, season and style also follow
        its caption.

        Args:
            layout: the layout.
            rng: generator for prompts.
            atmosphere: generator for weather, light, season and style; None: `rng`.
        """
        background = _sample_option(self.background, rng)
        phrases = []
        for name in layout.categories:
            prompt = _sample_option(self.phrases.get(name, self.object), rng)
            phrases.append(prompt.format(category=name))
        words = {}
        for name, choice in self.atmosphere().items():
            words[name] = _sample_option(choice, atmosphere or rng)
        added_words = [text for text in words.values() if text]
        if layout.caption:
            layout = replace(layout, caption=", ".join([layout.caption, *added_words]))
        prompt = layout.caption or ", ".join(filter(None, [background, *added_words]))
        prompted_layout = layout.with_phrases(layout.phrases or tuple(phrases))
        return Scene(prompted_layout, prompt, self.negative, words)

    def atmosphere(self) -> dict[str, Choice]:
        """Return those of weather, light, season and style that the job sets."""
        choices = {}
        for name in ATMOSPHERE:
            choice = getattr(self, name)
            if choice is not None:
                choices[name] = choice
        return choices


@dataclass(frozen=True)
class Scene:
    """A layout whose boxes have prompts, and the prompt of its background.

    Attributes:
        layout: the layout.
        background: prompt of the background, with the words of the atmosphere.
        negative: negative prompt.
        atmosphere: sampled words for those of weather, light, season and style that the job sets.
    """

    layout: Layout
    background: str
    negative: str = ""
    atmosphere: dict[str, str] = field(default_factory=dict)

    @property
    def phrases(self) -> tuple[str, ...]:
        return self.layout.prompts

    @property
    def prompt(self) -> str:
        """One line that describes the image.

        It is the layout's caption, or the number of objects of each category and the background.
        """
        return self.layout.caption or build_caption(self.layout, self.background)


def list_image_files(folder: Path) -> list[Path]:
    """Return the image files below a folder in a fixed order; none if there is no such folder."""
    if not folder.is_dir():
        return []
    files = []
    for path in folder.rglob("*"):
        is_macos_metadata = path.name.startswith("._")
        if path.suffix.lower() in PICTURE_SUFFIXES and not is_macos_metadata:
            files.append(path)
    return sorted(files)


def hash_images(folder: Path) -> str:
    """Return the sha256 of the names, relative to a folder, and bytes of the images below it."""
    digest = hashlib.sha256()
    for file in list_image_files(folder):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()}\0{content}\0".encode())
    return digest.hexdigest()


def describe_damage(files: Sequence[Path]) -> str:
    """Return one line about the image files that cannot be used, with the reason for the first.

    The line is empty if all files can be used.
    """
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
        reasons = list(pool.map(_find_damage, files))
    damaged = []
    for file, reason in zip(files, reasons, strict=True):
        if reason:
            damaged.append(f"{str(file)!r} {reason}")
    if not damaged:
        return ""
    more = ""
    if len(damaged) > 1:
        more = f"; and {len(damaged) - 1} more of {len(files)} images"
    return f"{damaged[0]}{more}; mend or remove it"


def _find_damage(file: Path) -> str:
    """Return why an image file cannot be used; empty if it can."""
    try:
        status = file.stat()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return _decode(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _decode(file: Path, size: int, modified: int) -> str:
    """Decode a whole image file and return what is wrong with it.

    The cache has one entry for each size in bytes and time of modification in ns.
    """
    try:
        with Image.open(file) as image:
            if image.mode not in EIGHT_BIT_MODES + OTHER_COLOUR_MODES:
                return f"has mode {image.mode}; save it with 8 bits a channel"
            # A draft of a JPEG reads the whole file, but computes only the mean of each block.
            image.draft(None, (1, 1))
            image.load()
    except DECODE_ERRORS as error:
        return f"does not decode: {error}"
    return ""


def _options(value: Choice) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _choices(value: Choice | dict[str, Choice]) -> list[Choice]:
    return list(value.values()) if isinstance(value, dict) else [value]


def _sample_option(value: Choice, rng: np.random.Generator) -> str:
    options = _options(value)
    return options[int(rng.integers(len(options)))]


def build_caption(layout: Layout, background: str, template: str = COUNTS) -> str:
    """Return one prompt for a whole image.

    Args:
        layout: the layout of the image.
        background: prompt of the background.
        template: {counts} is replaced by the number of objects of each category, such as
            "3 dog, 1 cat", {phrases} by the distinct prompts of the boxes, and {background} by the
            background's prompt. Commas and spaces at both ends of the result are removed. If the
            template names objects, the caption of an image without any is its background.
    """
    if not len(layout) and ("{counts}" in template or "{phrases}" in template):
        return background
    counts = []
    for name in dict.fromkeys(layout.categories):
        counts.append(f"{layout.categories.count(name)} {name}")
    phrases = dict.fromkeys(layout.prompts)
    text = template.format(
        counts=", ".join(counts), phrases=", ".join(phrases), background=background
    )
    return text.strip(", ")


def _check_template(*names: str) -> AfterValidator:
    """Return a validator of templates that have no other fields than these."""

    def check(value: str) -> str:
        try:
            value.format(**dict.fromkeys(names, ""))
        except (KeyError, IndexError, ValueError):
            fields = ", ".join(f"{{{name}}}" for name in names)
            raise ValueError(f"{value!r}: only {fields} are replaced") from None
        return value

    return AfterValidator(check)


Caption = Annotated[str, _check_template("counts", "phrases", "background")]
RegionPrompt = Annotated[str, _check_template("phrase", "background")]


def build_region_prompt(
    phrase: str, background: str, template: str = "{phrase}, {background}"
) -> str:
    """Return the prompt of the window around one box: the object first, then its background."""
    return template.format(phrase=phrase, background=background).strip(", ")
