"""The formats: which there are, and that a folder is all that a new one needs."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import synthgen.formats
from synthgen.cli.main import main
from synthgen.formats.base import formats, readable_formats, writable_formats
from synthgen.formats.export import load_writer
from synthgen.formats.source import load_reader, locate

TOY = """
from synthgen.formats.base import Format, Option

FORMAT = Format(
    name="toy",
    reader="synthgen.formats.toy.reader",
    content="toys (*.toy)",
    options=(Option("toy_sides", ("short", "long"), "what a side is"),),
    has_ids=False,
)
"""
READER = """
import numpy as np
from synthgen.formats.entries import Entry
from synthgen.formats.source import AnnotatedImages

class Toys(AnnotatedImages):
    def __init__(self, source):
        self.source = source

    def entries(self, whole=False):
        assert self.source.options == {"toy_sides": "long"}
        image = self.source.path.with_suffix(".png")
        yield Entry("toy", 32, 24, np.array([[1, 2, 9, 8]], float), ("robot",), picture=image)

def accepts(path):
    return path.suffix == ".toy"

def find_sources(folder, asked):
    yield from folder.glob("*.toy")

open_source = Toys
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A format whose folder is all that there is of it."""
    folder = tmp_path / "formats/toy"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(TOY)
    (folder / "reader.py").write_text(READER)
    monkeypatch.setattr(
        synthgen.formats, "__path__", [*synthgen.formats.__path__, str(folder.parent)]
    )
    formats.cache_clear()
    yield
    formats.cache_clear()


def test_the_formats_in_order() -> None:
    assert list(readable_formats()) == ["coco", "jsonl", "yolo", "voc", "labelme"]
    assert list(writable_formats()) == ["coco", "yolo", "hf", "voc"]


def test_what_formats_name_is_there() -> None:
    for name in readable_formats():
        reader = load_reader(name)
        assert all(map(callable, (reader.accepts, reader.find_sources, reader.open_source)))
    for name in writable_formats():
        writer = load_writer(name)
        assert all(map(callable, (writer.write_shard, writer.finish)))
        assert writer.CROWDS in (True, False)


def test_their_names_are_known_without_what_they_need() -> None:
    code = (
        "import sys\nimport synthgen.cli.main\nfrom synthgen.formats.base import formats\nassert formats()\n"
        "print({'numpy', 'PIL', 'pyarrow', 'pycocotools', 'pydantic', 'torch'} & set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
        == "set()\n"
    )


@pytest.mark.usefixtures("toy")
def test_a_folder_is_a_new_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    source = tmp_path / "source"
    source.mkdir()
    Image.new("RGB", (32, 24)).save(source / "a.png")
    (source / "a.toy").write_text("")
    assert locate(source) == locate(source / "a.toy") == ("toy", source / "a.toy")
    command = ["import", str(source), str(tmp_path / "out"), "--toy-sides", "long"]
    assert main([*command, "--images", str(source)]) == 2
    assert "--images: not for toy, which" in capsys.readouterr().err
    assert main([*command, "--json"]) == 0
    assert '"robot": 101' in capsys.readouterr().out
