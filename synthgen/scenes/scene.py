"""A scene: one layout and the words for what is in it."""

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
from synthgen.images import COLOURS, DAMAGED, EIGHT_BITS
from synthgen.layouts.base import Layout
from synthgen.scenes.camera import CameraSpec
from synthgen.spec import SpecModel

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
Choice = str | tuple[str, ...]
COUNTS = "{counts}, {background}"
ATMOSPHERE = ("weather", "light", "season", "style")


class SceneSpec(SpecModel):
    """What is in the picture, whatever paints it; a list is drawn from, per box or per image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    object: Choice = Field(
        DEFAULT_PHRASE, description="prompt of a box; a list is drawn from for each box"
    )
    phrases: dict[str, Choice] = Field(
        default={}, description="of single categories, what stands in the place of `object`"
    )
    background: Choice = Field(
        "", description="prompt of the background; a list is drawn from for each image"
    )
    negative: str = Field("", description="what the picture must not show")
    backgrounds: str | None = Field(
        None, description="folder of your own pictures to paint the objects into"
    )
    weather: Choice | None = Field(
        None,
        description="as 'in thick fog'; a list is drawn from for each image, as of the next three",
    )
    light: Choice | None = Field(
        None, description="as 'at dusk'; these words follow those of the background, in this order"
    )
    season: Choice | None = Field(
        None, description="as 'in autumn'; an empty text in a list: nothing is said"
    )
    style: Choice | None = Field(None, description="as 'a film photograph'")
    camera: CameraSpec | None = Field(None, description="effects on finished pictures; null: none")

    @field_validator("object", "background", "phrases", *ATMOSPHERE)
    @classmethod
    def not_empty(
        cls, value: Choice | dict[str, Choice] | None
    ) -> Choice | dict[str, Choice] | None:
        if value is not None and not all(map(_options, _choices(value))):
            raise ValueError("the list is empty; give at least one prompt")
        return value

    @field_validator("object", "phrases")
    @classmethod
    def names_only_category(cls, value: Choice | dict[str, Choice]) -> Choice | dict[str, Choice]:
        for prompt in (option for choice in _choices(value) for option in _options(choice)):
            try:
                prompt.format(category="")
            except (KeyError, IndexError, ValueError):
                raise ValueError(f"{prompt!r}: only {{category}} is replaced") from None
        return value

    @field_validator("backgrounds")
    @classmethod
    def holds_pictures(cls, value: str | None) -> str | None:
        if value is not None and not pictures(Path(value)):
            raise ValueError(
                f"{value!r} is not a folder with pictures ({', '.join(PICTURE_SUFFIXES)})"
            )
        if value is not None and (damage := describe_damage(pictures(Path(value)))):
            raise ValueError(damage)
        return value

    def fingerprint(self) -> dict[str, Any]:
        """Return what pixels depend on beyond the scene's own keys: hashes of files."""
        return (
            {}
            if self.backgrounds is None
            else {"backgrounds_sha256": hash_pictures(Path(self.backgrounds))}
        )

    def draw(
        self,
        layout: Layout,
        rng: np.random.Generator,
        atmosphere: np.random.Generator | None = None,
    ) -> "Scene":
        """The scene of one layout: a function of the spec, the layout and the generators' states.

        Phrases and a caption that the layout came with are kept; weather, light, season and style follow the caption too.

        Args:
            atmosphere: what these four are drawn with, apart from the rest; None: `rng`.
        """
        background = _pick(self.background, rng)
        drawn = tuple(
            _pick(self.phrases.get(name, self.object), rng).format(category=name)
            for name in layout.categories
        )
        words = {
            name: _pick(choice, atmosphere or rng) for name, choice in self.atmosphere().items()
        }
        said = [text for text in words.values() if text]
        if layout.caption:
            layout = replace(layout, caption=", ".join([layout.caption, *said]))
        place = layout.caption or ", ".join(filter(None, [background, *said]))
        return Scene(layout.with_phrases(layout.phrases or drawn), place, self.negative, words)

    def atmosphere(self) -> dict[str, Choice]:
        """Weather, light, season and style, those of them that are asked for."""
        return {name: choice for name in ATMOSPHERE if (choice := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Scene:
    """A layout whose boxes have prompts, and the prompt of what is round them.

    Attributes:
        background: with the words of the atmosphere.
        atmosphere: weather, light, season and style as they were drawn, those of them that are asked for.
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
        """One line that says what is in the picture: the layout's caption, or counts of each category, then the background."""
        return self.layout.caption or caption(self.layout, self.background)


def pictures(folder: Path) -> list[Path]:
    """List the image files below a folder in a fixed order; none if there is no such folder."""
    if not folder.is_dir():
        return []
    found = (p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    return sorted(
        p for p in found if not p.name.startswith("._")
    )  # macOS writes such files beside others


def hash_pictures(folder: Path) -> str:
    """Hash (sha256) the names, relative to a folder, and the bytes of the image files below it."""
    digest = hashlib.sha256()
    for file in pictures(folder):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()}\0{content}\0".encode())
    return digest.hexdigest()


def describe_damage(files: Sequence[Path]) -> str:
    """Say in one line which image files cannot be used, and why the first cannot; empty if all can."""
    with ThreadPoolExecutor() as pool:  # decoding does not hold the interpreter's lock
        reasons = list(pool.map(_damage_of, files))
    bad = [f"{str(file)!r} {reason}" for file, reason in zip(files, reasons, strict=True) if reason]
    more = f"; and {len(bad) - 1} more of {len(files)} images" if len(bad) > 1 else ""
    return f"{bad[0]}{more}; mend or remove it" if bad else ""


def _damage_of(file: Path) -> str:
    """Say why an image file cannot be used; empty if it can."""
    try:
        about = file.stat()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return _decoded(file, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _decoded(file: Path, size: int, changed: int) -> str:
    """Decode an image file whole, once for each size and time of change; say what is wrong with it."""
    try:
        with Image.open(file) as image:
            if image.mode not in EIGHT_BITS + COLOURS:
                return f"has mode {image.mode}; save it with 8 bits a channel"
            image.draft(
                None, (1, 1)
            )  # of a JPEG all is read, but only the mean of each block computed
            image.load()
    except DAMAGED as error:
        return f"does not decode: {error}"
    return ""


def _options(value: Choice) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _choices(value: Choice | dict[str, Choice]) -> list[Choice]:
    return list(value.values()) if isinstance(value, dict) else [value]


def _pick(value: Choice, rng: np.random.Generator) -> str:
    options = _options(value)
    return options[int(rng.integers(len(options)))]


def caption(layout: Layout, background: str, template: str = COUNTS) -> str:
    """One prompt for a whole picture.

    Args:
        template: {counts} is "3 dog, 1 cat"; {phrases} the boxes' distinct prompts, joined; {background} as it is. Commas and
            spaces at its ends go. If it names objects, a picture without any has the background for its caption.
    """
    if not len(layout) and ("{counts}" in template or "{phrases}" in template):
        return background
    counts = {name: layout.categories.count(name) for name in dict.fromkeys(layout.categories)}
    phrases = dict.fromkeys(layout.prompts)
    objects = ", ".join(f"{count} {name}" for name, count in counts.items())
    return template.format(counts=objects, phrases=", ".join(phrases), background=background).strip(
        ", "
    )


def _template(*names: str) -> AfterValidator:
    """Lets a template through that has no other fields than these."""

    def check(value: str) -> str:
        try:
            value.format(**dict.fromkeys(names, ""))
        except (KeyError, IndexError, ValueError):
            fields = ", ".join(f"{{{name}}}" for name in names)
            raise ValueError(f"{value!r}: only {fields} are replaced") from None
        return value

    return AfterValidator(check)


Caption = Annotated[str, _template("counts", "phrases", "background")]
RegionPrompt = Annotated[str, _template("phrase", "background")]


def region_prompt(phrase: str, background: str, template: str = "{phrase}, {background}") -> str:
    """The prompt of the window round one box: the object first, then what it stands on."""
    return template.format(phrase=phrase, background=background).strip(", ")
