"""The dataset card: README.md with the schema that loaders need, and a contact sheet with boxes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from synthgen.dataset.marker import format_shard_name
from synthgen.dataset.sample import VERIFIED, format_image_name, is_number, read_annotations
from synthgen.dataset.shard import list_shard_members
from synthgen.dataset.shard_reader import decode_image
from synthgen.storage.base import Store

if TYPE_CHECKING:
    from synthgen.dataset.info import DatasetInfo

TEMPLATE = Path(__file__).with_name("card.md.template")
SHEET_IMAGES = 8
SHEET_COLUMNS = 4
SHEET_TILE = 480  # px
SHEET_MARGIN = 6  # px of a tile that its image leaves free
FARTHEST_LINE = 1e4  # px beyond which Pillow does not draw reliably
COLOURS = ("#ff3b30", "#0a84ff", "#ffd60a", "#bf5af2", "#64d2ff", "#ff9f0a", "#30d158", "#ffffff")


def draw_boxes(
    image: Image.Image,
    boxes: Iterable[Iterable[float]],
    categories: Iterable[str],
    scale: float,
    colours: Mapping[str, str] | None = None,
) -> Image.Image:
    """Return a resized copy of an image with its boxes, in one colour for each category.

    Args:
        boxes: xywh in px of the original image.
        categories: one for each box.
        scale: size of the copy over the size of the image.
        colours: the colours of some categories; the others get the next of COLOURS.
    """
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(resized)
    known_colours = dict(colours or {})
    for (x, y, width, height), category in zip(boxes, categories, strict=True):
        next_colour = COLOURS[len(known_colours) % len(COLOURS)]
        colour = known_colours.setdefault(category, next_colour)
        right = x + max(width, 0)
        bottom = y + max(height, 0)
        corners = [_clip_to_line(v * scale) for v in (x, y, right, bottom)]
        draw.rectangle(corners, outline=colour)
    return resized


def _clip_to_line(value: float) -> float:
    return min(max(value, -FARTHEST_LINE), FARTHEST_LINE)


def make_contact_sheet(
    images: list[Image.Image], columns: int = SHEET_COLUMNS, tile: int = SHEET_TILE
) -> Image.Image:
    """Return images side by side on a dark background, each in a square of `tile` px."""
    columns = max(1, min(columns, len(images)))
    rows = max(1, -(-len(images) // columns))
    sheet = Image.new("RGB", (columns * tile, rows * tile), "#202020")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        sheet.paste(image, (column * tile, row * tile))
    return sheet


def write_contact_sheet(store: Store, rows: list[dict[str, Any]]) -> None:
    """Write `contact_sheet.jpg` of the first images, which are read from their shards."""
    rows_by_name = {format_image_name(row): row for row in rows[:SHEET_IMAGES]}
    shards = {int(row["shard"]) for row in rows_by_name.values()}
    tiles = []
    for number in sorted(shards):
        for name, data in list_shard_members(store, number):
            if name in rows_by_name:
                image = decode_image(data, store.path(name))
                tiles.append(_sheet_tile(image, rows_by_name[name]))
    with store.open_replacement("contact_sheet.jpg") as file:
        make_contact_sheet(tiles).save(file, "JPEG", quality=88)


def _sheet_tile(image: Image.Image, row: dict[str, Any]) -> Image.Image:
    annotations = read_annotations(row)
    boxes = [annotation.bbox for annotation in annotations]
    categories = [annotation.category for annotation in annotations]
    scale = (SHEET_TILE - SHEET_MARGIN) / max(image.size)
    return draw_boxes(image, boxes, categories, scale)


def write_card(
    store: Store,
    info: "DatasetInfo",
    facts: Mapping[str, Any],
    coco: str,
    has_masks: bool,
    verified: bool = False,
    conditions: Sequence[str] = (),
    has_source: bool = False,
) -> None:
    """Write README.md: the header that `datasets` reads, the figures, and how to load the shards.

    Args:
        facts: rows of the table of figures; "shards" is how many shards there are.
        coco: name of the (first) COCO file.
        has_masks: annotations have a segmentation.
        verified: annotations have scores, and samples have the counts of the verification.
        conditions: names of the conditions that samples have.
        has_source: samples keep the further fields of the COCO file they were imported from.
    """
    features = _features(info, has_masks, verified, conditions, has_source)
    files = [{"split": "train", "path": "shards/*.tar"}]
    table = "\n".join(f"| {key} | {escape_markdown(value)} |" for key, value in facts.items())
    last = format_shard_name(max(facts["shards"] - 1, 0))
    texts = {"table": table, "image": info.image_format, "last": last, "coco": coco}
    store.write("README.md", fill_card(TEMPLATE, info, files, features, **texts))


def fill_card(
    template: Path,
    info: "DatasetInfo",
    files: list[dict[str, Any]],
    features: list[dict[str, Any]],
    **texts: str,
) -> str:
    """Return a card: the header that `datasets` and its viewer read, and a filled template.

    Args:
        files: split and path of the data.
        features: the columns, as `datasets` describes them.
        texts: Markdown for the template, besides the dataset's name and description.
    """
    import yaml
    from huggingface_hub import DatasetCardData

    yaml.add_representer(QuotedText, _represent_quoted)
    is_real = info.imported or any(source.get("imported") for source in info.sources or ())
    data = {
        "pretty_name": QuotedText(info.name),
        "task_categories": ["object-detection"],
        "tags": ["synthgen"] if is_real else ["synthetic", "synthgen"],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {"features": features},
    }
    header = DatasetCardData(**data).to_yaml(original_order=list(data))
    about = escape_markdown(info.about[0].upper() + info.about[1:])
    text = template.read_text(encoding="utf-8")
    return text.format(header=header, name=escape_markdown(info.name), about=about, **texts)


def _features(
    info: "DatasetInfo",
    has_masks: bool,
    verified: bool,
    conditions: Sequence[str],
    has_source: bool,
) -> list[dict[str, Any]]:
    """Return the columns of a dataset; the arguments are those of `write_card`."""
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
        counts = _fields(**dict.fromkeys(VERIFIED, "int64"))
        sample.append(_struct("verified", counts))
    if conditions:
        types = {name: "float64" if is_number(name) else "string" for name in conditions}
        sample.append(_struct("conditions", _fields(**types)))
    if has_source:
        sample += _fields(source="string")
    if info.sources:
        sample.append(_struct("origin", _fields(dataset="string", index="int64", key="string")))
    sample.append({"name": "annotations", "list": _annotation_features(has_masks, verified)})
    images = _fields(**dict.fromkeys(info.image_format.split(";"), "image"))
    return [*images, _struct("json", sample), *_fields(__key__="string", __url__="string")]


def _annotation_features(has_masks: bool, verified: bool) -> list[dict[str, Any]]:
    """Return the fields of an annotation; the arguments are those of `write_card`."""
    annotation: list[dict[str, Any]] = [{"name": "bbox", "list": "float64"}]
    annotation += _fields(
        category_id="int64", category="string", phrase="string", area="float64", iscrowd="int64"
    )
    if verified:
        annotation += _fields(score="float64", iou="float64", action="string")
    if has_masks:
        size = {"name": "size", "list": "int64"}
        annotation.append(_struct("segmentation", [size, *_fields(counts="string")]))
    return annotation


def _struct(name: str, fields: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a column that has fields."""
    return {"name": name, "struct": fields}


def _fields(**types: str) -> list[dict[str, Any]]:
    """Return columns with the type of each."""
    return [{"name": name, "dtype": dtype} for name, dtype in types.items()]


class QuotedText(str):
    """Text that is quoted in the header of a card, so that every YAML reader takes it for text."""


def _represent_quoted(dumper: Any, text: QuotedText) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')


def escape_markdown(value: Any) -> str:
    """Return text as one line of Markdown that shows it unchanged.

    Nothing in the text becomes HTML, a link, an image or another cell of a table.
    """
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


def quote_yaml(text: str) -> str:
    """Return text as a YAML string in one line."""
    letters = []
    for letter in text:
        is_plain = letter.isprintable() and letter not in '"\\'
        letters.append(letter if is_plain else f"\\U{ord(letter):08x}")
    return f'"{"".join(letters)}"'
