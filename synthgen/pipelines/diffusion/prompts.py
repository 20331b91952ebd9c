"""The prompts of a batch."""

from collections.abc import Sequence
from typing import TypeVar

from synthgen.layouts.base import Layout
from synthgen.scenes.scene import caption

AnyPrompt = TypeVar("AnyPrompt", str, str | None)


class Prompts:
    """The distinct prompts of a batch: each is encoded once."""

    def __init__(self) -> None:
        self.rows: dict[str | None, int] = {}

    def row(self, text: str | None) -> int:
        """The row of a prompt in the table of embeddings."""
        return self.rows.setdefault(text, len(self.rows))

    @property
    def texts(self) -> list[str | None]:
        return list(self.rows)


def captions_of(
    layouts: Sequence[Layout], background: str | Sequence[str], template: str
) -> list[str]:
    """One prompt for each whole picture (see `synthgen.scenes.scene.caption`)."""
    backgrounds = per_image(background, len(layouts))
    return [
        caption(layout, words, template) for layout, words in zip(layouts, backgrounds, strict=True)
    ]


def per_image(prompt: AnyPrompt | Sequence[AnyPrompt], n: int) -> list[AnyPrompt]:
    """Return one prompt an image.

    Raises:
        ValueError: another number than n was given.
    """
    prompts = [prompt] * n if prompt is None or isinstance(prompt, str) else list(prompt)
    if len(prompts) != n:
        raise ValueError(
            f"prompts: {len(prompts)} given for {n} layouts; give one, or one a layout"
        )
    return prompts
