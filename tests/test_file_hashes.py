"""Remembered hashes of files are never those of other bytes."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from synthgen import file_hashes
from synthgen.file_hashes import hash_file

OLD = time.time() - 100


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "LEAST_BYTES", 10)
    return tmp_path / "cache/synthgen/hashes"


def write(path: Path, content: bytes, changed: float = OLD) -> Path:
    path.write_bytes(content)
    os.utime(path, (changed, changed))
    return path


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_large_file_is_read_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "weights", b"a" * 20)
    assert hash_file(file) == digest(b"a" * 20)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert hash_file(file) == digest(b"a" * 20)


@pytest.mark.parametrize(
    ("content", "changed"),
    [(b"b" * 20, OLD + 1), (b"b" * 21, OLD), (b"b" * 20, OLD + 1e-6)],
    ids=["another time", "another size", "a microsecond later"],
)
def test_a_changed_file_is_read_again(
    content: bytes, changed: float, cache: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "weights", b"a" * 20)
    hash_file(file)
    write(file, content, changed)
    assert hash_file(file) == digest(content)


def test_a_replaced_file_is_read_again(cache: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "weights", b"a" * 20)
    hash_file(file)
    write(tmp_path / "new", b"b" * 20).replace(file)
    assert hash_file(file) == digest(b"b" * 20)


def test_new_and_small_files_are_not_remembered(cache: Path, tmp_path: Path) -> None:
    for file in (
        write(tmp_path / "new", b"a" * 20, time.time()),
        write(tmp_path / "small", b"a" * 9),
    ):
        assert hash_file(file) == digest(file.read_bytes())
    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", b"z" * 64, b"\xff", b"0" * 63])
def test_a_damaged_entry_is_ignored(damage: bytes, cache: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "weights", b"a" * 20)
    hash_file(file)
    (entry,) = cache.iterdir()
    entry.write_bytes(damage)
    assert hash_file(file) == digest(b"a" * 20)
    assert entry.read_text() == digest(b"a" * 20)


def test_a_hash_needs_no_cache_folder(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    file = write(tmp_path / "weights", b"a" * 20)
    assert hash_file(file) == digest(b"a" * 20)
