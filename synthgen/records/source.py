"""A source of annotated pictures: which form it has, and its entries."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from synthgen.records import Entry, Problem, UnreadableSourceError, coco, labelme, lines, voc, yolo

COCO, JSONL, YOLO, VOC, LABELME = FORMS = ("coco", "jsonl", "yolo", "voc", "labelme")
UNNUMBERED = (VOC, LABELME)  # forms that have names of categories, and no numbers
WHAT_IS_READ = {
    COCO: "COCO (instances*.json, annotations*.json)",
    JSONL: "JSON lines or tables (*.jsonl, *.parquet)",
    YOLO: "YOLO (data.yaml, obj.data, images/ and labels/, or classes.txt)",
    VOC: "Pascal VOC (Annotations/*.xml, *.xml)",
    LABELME: "labelme (*.json with shapes)",
}
PEEKED = 16  # JSON files of a folder that are looked into for their form


@dataclass(frozen=True)
class Source:
    """Annotated pictures of one form, that can be gone through again and again.

    Attributes:
        path: the file that says what is where; of YOLO, Pascal VOC and labelme it may be the folder.
        images: the folder that file names start from; null: where they usually lie. YOLO's lie where its files say.
        split: of YOLO and Pascal VOC: train, val, test or all.
        columns, ids: of JSON lines (`synthgen.records.lines.read`).
        task: of YOLO: what a line means (`synthgen.records.yolo.TASKS`); null: what data.yaml says, or all lines can only mean.
        corners: of Pascal VOC: what xmin … ymax mean (`synthgen.records.voc.CORNERS`); null: what each file says.
    """

    form: str
    path: Path
    images: Path | None = None
    split: str | None = None
    columns: lines.Columns = lines.Columns()  # noqa: RUF009 (frozen)
    ids: Mapping[str, int] = field(default_factory=dict)
    task: str | None = None
    corners: str | None = None

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
        return self.dataset.entries(whole)

    @cached_property
    def dataset(self) -> yolo.Dataset | voc.Dataset | labelme.Dataset:
        """What the files of a folder are, found once."""
        if self.form == YOLO:
            return yolo.open_dataset(self.path, self.split, self.task)
        if self.form == VOC:
            return voc.open_dataset(self.path, self.images, self.split, self.corners)
        return labelme.open_dataset(self.path, self.images)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of what was read, and from where."""
        return self.dataset.remarks if self.form in (YOLO, VOC, LABELME) else ()

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
    found = [(f, p) for f, p in _candidates(path, form) if form in (None, f)]
    if len(found) == 1:
        return found[0]
    if not found and form is not None:
        raise UnreadableSourceError(f"{path}: no {form} here; what is read: {WHAT_IS_READ[form]}; name the file itself")
    if not found:
        forms = "; ".join(WHAT_IS_READ.values())
        raise UnreadableSourceError(f"{path}: nothing here that is read; name the file itself, or give a folder of: {forms}")
    choices = ", ".join(f"{p} ({f})" for f, p in found)
    raise UnreadableSourceError(f"{path}: more than one source: {choices}; name the file itself, or --format")


def _form_of(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in lines.LINES + lines.TABLES:
        return JSONL
    if suffix == ".json":
        return LABELME if labelme.is_here(path) else COCO
    if suffix in (".yaml", ".yml", yolo.DARKNET):
        return YOLO
    if suffix == ".xml":
        return VOC
    forms = "; ".join(WHAT_IS_READ.values())
    raise UnreadableSourceError(f"{path}: which form has it? --format {' | '.join(FORMS)}: {forms}")


def _candidates(folder: Path, form: str | None) -> Iterator[tuple[str, Path]]:
    """What a folder holds, of every form; what its JSON files are is looked into unless a form is given."""
    for path in sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")]):
        if path.stem.startswith("instances") or (path.parent == folder and path.stem.startswith(("_annotations", "annotations"))):
            yield COCO, path
    for path in sorted(p for suffix in lines.LINES + lines.TABLES for p in folder.glob(f"[!.]*{suffix}")):
        yield JSONL, path
    described = yolo.described(folder)
    labelled = (folder / "images").is_dir() and (folder / "labels").is_dir()
    for path in described or ([folder] if labelled or (folder / "classes.txt").is_file() else []):
        yield YOLO, path
    if voc.is_here(folder):
        yield VOC, folder
    files = labelme.files_of(folder)
    if files and (form == LABELME or any(map(labelme.is_here, files[:PEEKED]))):
        yield LABELME, folder
