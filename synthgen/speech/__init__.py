"""The spoken prompt: audio to text, and text to what a job can hold."""

from typing import Any

from pydantic import ConfigDict, Field

from synthgen.spec import SpecModel


class Spoken(SpecModel):
    """What was said, how it was heard, and what it means: kept with the job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(description="as heard, or as given")
    model: str | None = Field(None, description="that heard it: its id, or its folder's name")
    model_sha256: str | None = Field(None, description="of its files")
    audio_sha256: str | None = Field(None, description="of the recording")
    objects: dict[str, int] = Field(default={}, description="how many of each category")
    phrases: dict[str, tuple[str, ...]] = Field(
        default={}, description="prompts of a category's boxes; one is drawn for each"
    )
    background: str | None = None
    missed: tuple[str, ...] = Field((), description="words that mean nothing here")

    def settings(self) -> dict[str, Any]:
        """Keys of a job and their values."""
        found = {
            "layout.objects": self.objects,
            "scene.phrases": self.phrases,
            "scene.background": self.background,
        }
        return {key: value for key, value in found.items() if value}

    def heard(self) -> str:
        """The text, to be shown."""
        return f"heard: {self.text}"

    def understood(self) -> list[str]:
        """What is made of it, to be shown."""
        parts = [f"{count} x {name}" for name, count in self.objects.items()]
        for name, options in self.phrases.items():
            parts.append(f"{name} as {' or '.join(repr(o.format(category=name)) for o in options)}")
        parts += [f"background {self.background!r}"] if self.background else []
        lines = [f"understood: {', '.join(parts)}"]
        lines += [] if self.objects else ["no count of a known category: the layout stays as it is"]
        return lines + ([f"not understood: {' '.join(self.missed)}"] if self.missed else [])
