"""The dataset card: README.md with the schema that loaders need, and a contact sheet with the boxes drawn."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from synthgen.shards.sample import annotations_of, is_number
from synthgen.shards.samples import decoded
from synthgen.shards.shard import shard_members, shard_name
from synthgen.shards.store import Store

if TYPE_CHECKING:
    from synthgen.shards.dataset import DatasetInfo

SHEET_IMAGES = 8
SHEET_COLUMNS = 4
SHEET_TILE = 480
COLOURS = ("#ff3b30", "#0a84ff", "#ffd60a", "#bf5af2", "#64d2ff", "#ff9f0a", "#30d158", "#ffffff")

IMAGE_FEATURE = """\
  - name: {image}
    dtype: image
"""
FEATURES = """\
{images}  - name: json
    struct:
    - name: index
      dtype: int64
    - name: key
      dtype: string
    - name: width
      dtype: int64
    - name: height
      dtype: int64
    - name: prompt
      dtype: string
    - name: seed
      dtype: int64
    - name: attempt
      dtype: int64
{verified}{conditions}{source}{origin}    - name: annotations
      list:
      - name: bbox
        list: float64
      - name: category_id
        dtype: int64
      - name: category
        dtype: string
      - name: phrase
        dtype: string
      - name: area
        dtype: float64
      - name: iscrowd
        dtype: int64
{scores}{segmentation}  - name: __key__
    dtype: string
  - name: __url__
    dtype: string
"""
VERIFIED_FEATURES = """\
    - name: verified
      struct:
      - name: failed
        dtype: int64
      - name: unasked
        dtype: int64
      - name: repairs
        dtype: int64
"""
CONDITIONS = """\
    - name: conditions
      struct:
"""
CONDITION = """\
      - name: {name}
        dtype: {kind}
"""
SOURCE = """\
    - name: source
      dtype: string
"""
ORIGIN_FEATURES = """\
    - name: origin
      struct:
      - name: dataset
        dtype: string
      - name: index
        dtype: int64
      - name: key
        dtype: string
"""
SCORES = """\
      - name: score
        dtype: float64
      - name: iou
        dtype: float64
      - name: action
        dtype: string
"""
SEGMENTATION = """\
      - name: segmentation
        struct:
        - name: size
          list: int64
        - name: counts
          dtype: string
"""


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


def contact_sheet(pictures: list[Image.Image], columns: int = SHEET_COLUMNS, tile: int = SHEET_TILE) -> Image.Image:
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
                pictures.append(draw_boxes(image, [b["bbox"] for b in boxes], [b["category"] for b in boxes], scale))
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
    more = {"segmentation": SEGMENTATION if has_masks else ""}
    more |= {"verified": VERIFIED_FEATURES if verified else "", "scores": SCORES if verified else ""}
    fields = [CONDITION.format(name=name, kind="float64" if is_number(name) else "string") for name in conditions]
    more |= {"conditions": CONDITIONS + "".join(fields) if fields else ""}
    more |= {"source": SOURCE if source else "", "origin": ORIGIN_FEATURES if info.sources else ""}
    images = "".join(IMAGE_FEATURE.format(image=kind) for kind in info.image_format.split(";"))
    features = FEATURES.format(images=images, **more)
    table = "\n".join(f"| {key} | {escaped(value)} |" for key, value in facts.items())
    last = shard_name(max(facts["shards"] - 1, 0))
    card = CARD.format(**heading(info), features=features, table=table, image=info.image_format, last=last, coco=coco)
    store.write("README.md", card)


def heading(info: "DatasetInfo") -> dict[str, str]:
    """What every card says first of a dataset: name, tags and what it is."""
    real = info.imported or any(source.get("imported") for source in info.sources or ())
    about = escaped(info.about[0].upper() + info.about[1:])
    names = {"pretty_name": quoted(info.name), "name": escaped(info.name)}
    return {**names, "tags": "" if real else "- synthetic\n", "about": about}


def escaped(value: Any) -> str:
    """Text as Markdown that shows it as it is, in one line: no HTML, no link, no picture, no other cell of a table."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


def quoted(text: str) -> str:
    """Text as a string of YAML, in one line."""
    letters = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(letters)}"'


CARD = """\
---
pretty_name: {pretty_name}
task_categories:
- object-detection
tags:
{tags}- synthgen
configs:
- config_name: default
  data_files:
  - split: train
    path: shards/*.tar
dataset_info:
  features:
{features}---

# {name}

{about}.

![The first images, with their boxes](contact_sheet.jpg)

| | |
| --- | --- |
{table}

## Reading it

```python
import webdataset as wds
dataset = wds.WebDataset("shards/{{000000..{last}}}.tar").decode("pil").to_tuple("{image}", "json")
```

```python
from pycocotools.coco import COCO
coco = COCO("{coco}")  # image id = sample index + 1
```

```python
from datasets import load_dataset
dataset = load_dataset(".", split="train")
```

Boxes are `[x, y, width, height]` in pixels. `manifest.parquet` has one row a sample.
"""
