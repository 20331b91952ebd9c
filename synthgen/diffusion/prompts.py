"""The prompts of a batch."""

from collections.abc import Sequence

from synthgen.layouts import Layout


class Prompts:
    """The distinct prompts of a batch: each is encoded once."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}

    def row(self, text: str) -> int:
        """The row of a prompt in the table of embeddings."""
        return self.rows.setdefault(text, len(self.rows))

    @property
    def texts(self) -> list[str]:
        return list(self.rows)


def phrases_of(layout: Layout) -> tuple[str, ...]:
    """The prompts of a layout's boxes; "a {category}" where it has none."""
    return layout.phrases or tuple(f"a {name}" for name in layout.categories)


def per_image(prompt: str | Sequence[str], n: int) -> list[str]:
    """One prompt an image.

    Raises:
        ValueError: another number than n was given.
    """
    prompts = [prompt] * n if isinstance(prompt, str) else list(prompt)
    if len(prompts) != n:
        raise ValueError(f"prompts: {len(prompts)} given for {n} layouts; give one, or one a layout")
    return prompts
