"""The prompts of a batch."""

from collections.abc import Sequence
from typing import TypeVar

from synthgen.layouts.base import Layout
from synthgen.scenes.scene import build_caption

AnyPrompt = TypeVar("AnyPrompt", str, str | None)


class Prompts:
    """The distinct prompts of a batch; each is encoded once."""

    def __init__(self) -> None:
        self.rows: dict[str | None, int] = {}

    def row(self, text: str | None) -> int:
        """Return the row of a prompt in the table of embeddings; a new prompt gets a new row."""
        return self.rows.setdefault(text, len(self.rows))

    @property
    def texts(self) -> list[str | None]:
        """The prompts in the order of their rows."""
        return list(self.rows)


def fill_captions(
    layouts: Sequence[Layout], background: str | Sequence[str], template: str
) -> list[str]:
    """Return one prompt for each whole image (see `synthgen.scenes.scene.build_caption`)."""
    backgrounds = repeat_per_image(background, len(layouts))
    captions = []
    for layout, words in zip(layouts, backgrounds, strict=True):
        captions.append(build_caption(layout, words, template))
    return captions


def repeat_per_image(prompt: AnyPrompt | Sequence[AnyPrompt], n: int) -> list[AnyPrompt]:
    """Return one prompt per image; a single prompt is repeated.

    Raises:
        ValueError: the number of prompts is not n.
    """
    if prompt is None or isinstance(prompt, str):
        return [prompt] * n
    prompts = list(prompt)
    if len(prompts) != n:
        raise ValueError(
            f"prompts: {len(prompts)} given for {n} layouts; give one, or one per layout"
        )
    return prompts
