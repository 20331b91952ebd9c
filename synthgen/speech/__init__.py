"""The spoken prompt: speech to text, and text to settings of a job."""

from typing import Any

from pydantic import ConfigDict, Field

from synthgen.spec import SpecModel


class Spoken(SpecModel):
    """A spoken prompt: its text, where the text comes from, and what it means.

    It is stored with the job.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(description="Text that was recognised or given.")
    model: str | None = Field(
        None,
        description="Speech model that recognised the text: its id, or the name of its folder.",
    )
    model_sha256: str | None = Field(None, description="SHA-256 hash of the model's files.")
    audio_sha256: str | None = Field(None, description="SHA-256 hash of the recording.")
    objects: dict[str, int] = Field(default={}, description="Number of objects of each category.")
    phrases: dict[str, tuple[str, ...]] = Field(
        default={}, description="Prompts of a category's boxes; one is sampled for each box."
    )
    background: str | None = Field(None, description="Prompt of the background.")
    missed: tuple[str, ...] = Field((), description="Words that were not understood.")

    def settings(self) -> dict[str, Any]:
        """Return the keys of a job that the prompt sets, and their values."""
        settings = {
            "layout.objects": self.objects,
            "scene.phrases": self.phrases,
            "scene.background": self.background,
        }
        return {key: value for key, value in settings.items() if value}

    def describe_text(self) -> str:
        """Return a line that shows the text."""
        return f"heard: {self.text}"

    def describe_meaning(self) -> list[str]:
        """Return lines that show what the text means."""
        meanings = [f"{count} x {name}" for name, count in self.objects.items()]
        for name, phrases in self.phrases.items():
            examples = [repr(phrase.format(category=name)) for phrase in phrases]
            meanings.append(f"{name} as {' or '.join(examples)}")
        if self.background:
            meanings.append(f"background {self.background!r}")
        lines = [f"understood: {', '.join(meanings)}"]
        if not self.objects:
            lines.append("no count of a known category: the layout is not changed")
        if self.missed:
            lines.append(f"not understood: {' '.join(self.missed)}")
        return lines
