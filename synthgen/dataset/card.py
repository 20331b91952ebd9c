"""The dataset card: README.md with the schema that loaders need, and a contact sheet with the boxes drawn."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from synthgen.dataset.marker import shard_name
from synthgen.dataset.sample import annotations_of, is_number
from synthgen.dataset.shard import shard_members
from synthgen.dataset.shard_reader import decoded
from synthgen.storage.base import Store

if TYPE_CHECKING:
    from synthgen.dataset.info import DatasetInfo

TEMPLATE = Path(__file__).with_name("card.md.template")
SHEET_IMAGES = 8
SHEET_COLUMNS = 4
SHEET_TILE = 480
COLOURS = ("#ff3b30", "#0a84ff", "#ffd60a", "#bf5af2", "#64d2ff", "#ff9f0a", "#30d158", "#ffffff")


def draw_boxes(
    image: Image.Image,
    boxes: Iterable[Iterable[float]],
    categories: Iterable[str],
    scale: float,
    colours: Mapping[str, str] | None = None,
) -> Image.Image:
    """A copy of the picture at `scale`, with boxes (xywh in px of the original) in a colour for each category."""
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(small)
    colour = dict(colours or {})
    for (x, y, w, h), category in zip(boxes, categories, strict=True):
        line = colour.setdefault(category, COLOURS[len(colour) % len(COLOURS)])
        corners = (x * scale, y * scale, (x + max(w, 0)) * scale, (y + max(h, 0)) * scale)
        draw.rectangle([min(max(v, -1e4), 1e4) for v in corners], outline=line)
    return small


def contact_sheet(
    pictures: list[Image.Image], columns: int = SHEET_COLUMNS, tile: int = SHEET_TILE
) -> Image.Image:
    """Pictures side by side on dark ground, each in a square of `tile` px."""
    columns = max(1, min(columns, len(pictures)))
    rows = max(1, -(-len(pictures) // columns))
    sheet = Image.new("RGB", (columns * tile, rows * tile), "#202020")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * tile, i // columns * tile))
    return sheet


def write_contact_sheet(store: Store, rows: list[dict[str, Any]]) -> None:
    """Write `contact_sheet.jpg` of the first images, read from their shard."""
    wanted = {f"{row['key']}.{row['image_format']}": row for row in rows[:SHEET_IMAGES]}
    pictures = []
    for number in sorted({int(row["shard"]) for row in wanted.values()}):
        for name, data in shard_members(store, number):
            if name in wanted:
                image, boxes = decoded(data, store.path(name)), annotations_of(wanted[name])
                scale = (SHEET_TILE - 6) / max(image.size)
                pictures.append(
                    draw_boxes(image, [b.bbox for b in boxes], [b.category for b in boxes], scale)
                )
    with store.replacing("contact_sheet.jpg") as file:
        contact_sheet(pictures).save(file, "JPEG", quality=88)


def write_card(
    store: Store,
    info: "DatasetInfo",
    facts: Mapping[str, Any],
    coco: str,
    has_masks: bool,
    verified: bool = False,
    conditions: Sequence[str] = (),
    source: bool = False,
) -> None:
    """Write README.md: the header that `datasets` reads, the figures, and how to load the shards.

    Args:
        coco: name of the (first) COCO file.
        has_masks: annotations have a segmentation.
        verified: they have scores, and samples what was seen in them.
        conditions: that samples have.
        source: samples keep what else their COCO file says.
    """
    features = _features(info, has_masks, verified, conditions, source)
    files = [{"split": "train", "path": "shards/*.tar"}]
    table = "\n".join(f"| {key} | {escaped(value)} |" for key, value in facts.items())
    last = shard_name(max(facts["shards"] - 1, 0))
    texts = {"table": table, "image": info.image_format, "last": last, "coco": coco}
    store.write("README.md", filled_card(TEMPLATE, info, files, features, **texts))


def filled_card(
    template: Path,
    info: "DatasetInfo",
    files: list[dict[str, Any]],
    features: list[dict[str, Any]],
    **texts: str,
) -> str:
    """Return a card: the header that `datasets` and its viewer read, and the text of a template.

    Args:
        files: split and path of the data.
        features: the columns, in the words of `datasets`.
        texts: Markdown for the template, beside the dataset's name and what it is.
    """
    import yaml
    from huggingface_hub import DatasetCardData

    yaml.add_representer(
        Quoted,
        lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'),
    )
    is_real = info.imported or any(source.get("imported") for source in info.sources or ())
    data = {
        "pretty_name": Quoted(info.name),
        "task_categories": ["object-detection"],
        "tags": ["synthgen"] if is_real else ["synthetic", "synthgen"],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {"features": features},
    }
    header = DatasetCardData(**data).to_yaml(original_order=list(data))
    about = escaped(info.about[0].upper() + info.about[1:])
    text = template.read_text(encoding="utf-8")
    return text.format(header=header, name=escaped(info.name), about=about, **texts)


def _features(
    info: "DatasetInfo", has_masks: bool, verified: bool, conditions: Sequence[str], source: bool
) -> list[dict[str, Any]]:
    """Return the columns of a dataset; the arguments are those of `write_card`."""
    annotation: list[dict[str, Any]] = [{"name": "bbox", "list": "float64"}]
    annotation += _fields(
        category_id="int64", category="string", phrase="string", area="float64", iscrowd="int64"
    )
    if verified:
        annotation += _fields(score="float64", iou="float64", action="string")
    if has_masks:
        size = {"name": "size", "list": "int64"}
        annotation.append({"name": "segmentation", "struct": [size, *_fields(counts="string")]})
    sample = _fields(
        index="int64",
        key="string",
        width="int64",
        height="int64",
        prompt="string",
        seed="int64",
        attempt="int64",
    )
    if verified:
        sample.append(
            {
                "name": "verified",
                "struct": _fields(failed="int64", unasked="int64", repairs="int64"),
            }
        )
    if conditions:
        kinds = {name: "float64" if is_number(name) else "string" for name in conditions}
        sample.append({"name": "conditions", "struct": _fields(**kinds)})
    if source:
        sample += _fields(source="string")
    if info.sources:
        sample.append(
            {"name": "origin", "struct": _fields(dataset="string", index="int64", key="string")}
        )
    sample.append({"name": "annotations", "list": annotation})
    images = _fields(**dict.fromkeys(info.image_format.split(";"), "image"))
    return [
        *images,
        {"name": "json", "struct": sample},
        *_fields(__key__="string", __url__="string"),
    ]


def _fields(**kinds: str) -> list[dict[str, Any]]:
    """Return columns with the type of each."""
    return [{"name": name, "dtype": kind} for name, kind in kinds.items()]


class Quoted(str):
    """Text that stands between quotation marks in the header of a card, so that every reader takes it for text."""


def escaped(value: Any) -> str:
    """Text as Markdown that shows it as it is, in one line: no HTML, no link, no picture, no other cell of a table."""
    text = (
        " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


def quoted(text: str) -> str:
    """Text as a string of YAML, in one line."""
    letters = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(letters)}"'
