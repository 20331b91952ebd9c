"""The list of formats, and that a new format needs only a folder."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import synthgen.formats
from synthgen.cli.main import main
from synthgen.formats.base import find_formats, list_readable_formats, list_writable_formats
from synthgen.formats.export import load_writer
from synthgen.formats.source import load_reader, locate_source

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
        yield Entry("toy", 32, 24, np.array([[1, 2, 9, 8]], float), ("robot",), image_path=image)

def accepts(path):
    return path.suffix == ".toy"

def find_sources(folder, is_format_given):
    yield from folder.glob("*.toy")

open_source = Toys
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A format that consists only of its folder."""
    folder = tmp_path / "formats/toy"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(TOY)
    (folder / "reader.py").write_text(READER)
    monkeypatch.setattr(
        synthgen.formats, "__path__", [*synthgen.formats.__path__, str(folder.parent)]
    )
    find_formats.cache_clear()
    yield
    find_formats.cache_clear()


def test_formats_are_listed_in_order() -> None:
    assert list(list_readable_formats()) == ["coco", "jsonl", "yolo", "voc", "labelme"]
    assert list(list_writable_formats()) == ["coco", "yolo", "hf", "voc"]


def test_each_format_has_its_reader_and_writer() -> None:
    for name in list_readable_formats():
        reader = load_reader(name)
        assert all(map(callable, (reader.accepts, reader.find_sources, reader.open_source)))
    for name in list_writable_formats():
        writer = load_writer(name)
        assert all(map(callable, (writer.write_shard, writer.finish)))
        assert writer.CROWDS in (True, False)


def test_formats_are_listed_without_importing_their_libraries() -> None:
    code = (
        "import sys\n"
        "import synthgen.cli.main\n"
        "from synthgen.formats.base import find_formats\n"
        "assert find_formats()\n"
        "libraries = {'numpy', 'PIL', 'pyarrow', 'pycocotools', 'pydantic', 'torch'}\n"
        "print(libraries & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    completed = subprocess.run(command, check=True, capture_output=True, text=True)
    assert completed.stdout == "set()\n"


@pytest.mark.usefixtures("toy")
def test_a_folder_is_a_new_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    source = tmp_path / "source"
    source.mkdir()
    Image.new("RGB", (32, 24)).save(source / "a.png")
    (source / "a.toy").write_text("")
    assert locate_source(source) == locate_source(source / "a.toy") == ("toy", source / "a.toy")
    command = ["import", str(source), str(tmp_path / "out"), "--toy-sides", "long"]
    assert main([*command, "--images", str(source)]) == 2
    assert "--images: not for toy, the format of" in capsys.readouterr().err
    assert main([*command, "--json"]) == 0
    assert '"robot": 101' in capsys.readouterr().out
