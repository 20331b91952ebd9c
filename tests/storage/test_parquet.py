"""Arrow never gets a Python file: its threads would need the interpreter while that exits."""

import ast
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import synthgen
from synthgen.dataset.check import check_dataset
from synthgen.engine.merging import MergeSpec, merge
from synthgen.formats.export import ExportSpec, export_dataset
from synthgen.formats.jsonl.reader import _table
from synthgen.storage.location import open_store
from synthgen.storage.parquet import (
    count_rows,
    decode_table,
    encode_table,
    open_input,
    open_parquet,
)
from tests.dataset.test_shard import write_dataset
from tests.s3 import S3

ROOT = Path(synthgen.__file__).parent
OPENERS = {
    "csv",
    "dataset",
    "feather",
    "ipc",
    "json",
    "orc",
    "parquet",
}  # modules of pyarrow that open files
MAKERS = {
    "PythonFile",
    "input_stream",
    "output_stream",
    "memory_map",
    "OSFile",
    "RecordBatchFileReader",
    "RecordBatchFileWriter",
}


def opened_by(tree: ast.AST) -> Iterator[str]:
    """Yield the names in a module of what opens files in pyarrow."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from (
                ".".join(parts) for parts in names if parts[0] == "pyarrow" and OPENERS & set(parts)
            )
            yield from (".".join(parts) for parts in names if parts[0] in ("pandas", "fastparquet"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyarrow"):
            named = {alias.name for alias in node.names} | set((node.module or "").split("."))
            yield from sorted(named & (OPENERS | MAKERS))
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("pa", "pyarrow")
        ):
            yield from {node.attr} & (OPENERS | MAKERS)


def test_only_one_module_opens_files_for_arrow() -> None:
    found = {
        str(path.relative_to(ROOT)): sorted(opened_by(ast.parse(path.read_text())))
        for path in ROOT.rglob("*.py")
    }
    assert {name: what for name, what in found.items() if what} == {
        "storage/parquet.py": ["pyarrow.parquet"]
    }


def test_arrow_gets_only_files_that_it_opened_itself(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, Any]] = []
    for kind in (pq.ParquetFile, pq.ParquetWriter):

        def begin(
            self: Any,
            where: Any,
            *args: Any,
            kind: Any = kind,
            init: Any = kind.__init__,
            **more: Any,
        ) -> None:
            given.append((kind.__name__, where))
            init(self, where, *args, **more)

        monkeypatch.setattr(kind, "__init__", begin)
    out = write_dataset(tmp_path / "out", [1, 2, 3, 1])
    assert check_dataset(open_store(out))[0] == []
    export_dataset(ExportSpec(out, "hf", tmp_path / "hf"))
    table = next((tmp_path / "hf/data").glob("*.parquet"))
    assert len(list(_table(table))) == count_rows(table) > 0
    url = s3.url(uuid.uuid4().hex)
    merge(MergeSpec((out,), url, shard_size=3))
    assert check_dataset(open_store(url))[0] == []
    assert {name for name, _ in given} == {"ParquetFile", "ParquetWriter"}
    assert {
        type(where)
        for _, where in given
        if not isinstance(where, pa.NativeFile) or isinstance(where, pa.PythonFile)
    } == set()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_reading_starts_no_thread_of_arrow(tmp_path: Path) -> None:
    """A thread of Arrow stays until the program exits, and can keep what was read in memory."""
    out = write_dataset(tmp_path / "out", [1, 2])
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from synthgen.formats.export import ExportSpec, export_dataset\n"
        "from synthgen.formats.hugging_face import writer\n"
        "from synthgen.dataset.check import check_dataset\n"
        "from synthgen.storage.location import open_store\n"
        "threads = lambda: len(os.listdir('/proc/self/task'))\n"
        "before, out = threads(), Path(sys.argv[1])\n"
        "assert check_dataset(open_store(out))[0] == []\n"
        "export_dataset(ExportSpec(out, 'hf', Path(sys.argv[2]), 0.0, workers=1))\n"
        "print(threads() - before)"
    )
    command = [sys.executable, "-c", code, str(out), str(tmp_path / "hf")]
    assert (
        subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout
        == "0\n"
    )


def test_a_table_is_encoded_and_decoded() -> None:
    table = pa.table({"a": [1, 2, 3], "b": ["x", None, "ünï"]})
    assert encode_table(table) == encode_table(table)
    assert decode_table(encode_table(table)).equals(table)


def test_a_name_that_looks_like_a_url_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("s3:x #100% 😀.parquet")
    path.write_bytes(encode_table(pa.table({"a": [1, 2]})))
    with open_input(path) as source, open_parquet(source) as file:
        assert file.read()["a"].to_pylist() == [1, 2]
    assert [record for _, record in _table(path)] == [{"a": 1}, {"a": 2}]


def test_a_block_that_fails_leaves_the_table_as_it_was(tmp_path: Path, s3: S3) -> None:
    for out in (tmp_path / "out", s3.url(uuid.uuid4().hex)):
        store = open_store(out)
        store.write("manifest.parquet", b"old")
        with suppress(KeyboardInterrupt), store.open_table_replacement("manifest.parquet") as file:
            file.write(b"half")
            raise KeyboardInterrupt
        assert store.read("manifest.parquet") == b"old"
        with store.open_table_replacement("manifest.parquet") as file:
            file.write(b"new")
        assert store.read("manifest.parquet") == b"new"
        with store.open_table("manifest.parquet") as file:
            assert file.read() == b"new"
        with pytest.raises(FileNotFoundError), store.open_table("none.parquet"):
            pass
