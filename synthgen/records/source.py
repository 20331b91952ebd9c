"""A source of annotated pictures: which form it has, and its entries."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from synthgen.records import Entry, Problem, UnreadableSourceError, coco, lines, yolo

COCO, JSONL, YOLO = "coco", "jsonl", "yolo"
FORMS = (COCO, JSONL, YOLO)


@dataclass(frozen=True)
class Source:
    """Annotated pictures of one form, that can be gone through again and again.

    Attributes:
        path: the file that says what is where; of YOLO the folder.
        images: the folder that file names start from; null: where they usually lie.
        split: of YOLO: train, val, test or all.
        columns, ids: of JSON lines (`synthgen.records.lines.read`).
    """

    form: str
    path: Path
    images: Path | None = None
    split: str | None = None
    columns: lines.Columns = lines.Columns()  # noqa: RUF009 (frozen)
    ids: Mapping[str, int] = field(default_factory=dict)

    def entries(self, whole: bool = False) -> Iterator[Entry | Problem]:
        """All entries, in order.

        Args:
            whole: with crowds and masks.

        Raises:
            UnreadableSourceError: it is not of this form.
        """
        if self.form == COCO:
            images = self.images or coco.default_images(self.path, self.coco_file)
            return coco.entries(self.coco_file, self.path, images, whole)
        if self.form == JSONL:
            return lines.read(self.path, self.images, self.columns, self.ids, whole, once=True)
        return yolo.read(self.path, self.split, whole)

    @cached_property
    def coco_file(self) -> dict[str, Any]:
        return coco.load(self.path)

    @property
    def own_ids(self) -> dict[str, int]:
        """The category ids that the source itself has: COCO's files do."""
        return {c["name"]: c["id"] for c in self.coco_file["categories"]} if self.form == COCO else {}

    @property
    def head(self) -> dict[str, Any] | None:
        """What outlives the source to write it again (`synthgen.records.coco.head`); COCO's files alone have it."""
        return coco.head(self.coco_file) if self.form == COCO else None

    @property
    def licence(self) -> str:
        """What the source says of the pictures' licence."""
        stated = self.coco_file.get("licenses") if self.form == COCO else None
        names = [str(item.get("name", "")) for item in stated if isinstance(item, dict)] if isinstance(stated, list) else []
        return ", ".join(dict.fromkeys(filter(None, names))) or "not stated"


def locate(path: Path, form: str | None = None) -> tuple[str, Path]:
    """The form of a source, and the file that says what is where (of YOLO the folder or data.yaml).

    Args:
        path: that file, or the folder that holds it.
        form: one of FORMS; null: guessed.

    Raises:
        UnreadableSourceError: there is nothing of that form, or more than one; the message says what.
    """
    if path.is_file():
        return form or _form_of(path), path
    if not path.is_dir():
        raise UnreadableSourceError(f"{path}: no such file or folder")
    found = [(f, p) for f, p in _candidates(path) if form in (None, f)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnreadableSourceError(
            f"{path}: no {form or 'COCO file (.json), JSON lines or YOLO dataset'} here; name the file itself"
        )
    choices = ", ".join(f"{p} ({f})" for f, p in found)
    raise UnreadableSourceError(f"{path}: more than one source: {choices}; name the file itself, or --format")


def _form_of(path: Path) -> str:
    if path.suffix in lines.LINES + lines.TABLES:
        return JSONL
    if path.suffix == ".json":
        return COCO
    if path.suffix in (".yaml", ".yml"):
        return YOLO
    raise UnreadableSourceError(f"{path}: which form has it? --format {' | '.join(FORMS)}")


def _candidates(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")]):
        if path.stem.startswith("instances") or (path.parent == folder and path.stem.startswith(("_annotations", "annotations"))):
            yield COCO, path
    for path in sorted(p for suffix in lines.LINES + lines.TABLES for p in folder.glob(f"[!.]*{suffix}")):
        yield JSONL, path
    if yolo.described(folder) or ((folder / "images").is_dir() and (folder / "labels").is_dir()):
        yield YOLO, (yolo.described(folder) or [folder])[0]
