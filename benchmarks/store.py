#!/usr/bin/env python3
"""Measure the time and memory that the driver needs to scan and to finalise many shards.

usage: benchmarks/store.py [--shards 2000 20000 200000] [--finalize 100 1000] [--json]

The shards are synthetic. The scan reads markers beside empty files; finalising reads the table of
one real shard, copied under other numbers. Each figure is that of a new process. "cpu" is its
processor time, which depends less than seconds on other processes.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from synthgen.annotations import Annotation
from synthgen.dataset.finalise import finalize
from synthgen.dataset.info import DatasetInfo
from synthgen.dataset.marker import (
    MARKER,
    TABLE,
    TAR,
    Marker,
    format_shard_file,
    format_shard_name,
    read_marker,
    scan_markers,
)
from synthgen.dataset.sample import Sample, sample_key
from synthgen.dataset.shard import commit, read_table, stage
from synthgen.storage.location import open_store

NUMERICS = {
    "batch_size": 4,
    "chunk": 32,
    "threads": 1,
    "device": "cuda",
    "versions": {f"package-{n}": "1.2.3" for n in range(7)},
}
INFO = DatasetInfo("many", 1, {"seed": 0}, {"dog": 18}, "jpg", "Apache-2.0")
IMAGES = 250  # images in each shard that is finalised
BOXES = 10  # boxes in each image


def write_markers(out: Path, shards: int) -> None:
    """Write committed shards without content."""
    (out / "shards").mkdir()
    marker = Marker(250, 0, 0, "0" * 64, "0" * 32, 0, "0" * 64, NUMERICS, 1.0, 250)
    text = json.dumps(asdict(marker), indent=1)
    for number in range(shards):
        (out / format_shard_file(number, MARKER)).write_text(text)
        for suffix in (TAR, TABLE):
            (out / format_shard_file(number, suffix)).touch()


def write_shards(out: Path, shards: int) -> None:
    """Write committed shards whose tables differ only in the numbers of shard and samples.

    All shards have the same tar, because finalising only reads the first one.
    """
    label = Annotation(
        bbox=(1.5, 2.5, 30.25, 40.0), category_id=18, category="dog", phrase="a dog", area=1210.0
    )
    labels = (label,) * BOXES
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64)).save(encoded, "JPEG")
    samples = []
    for index in range(IMAGES):
        prompt = "10 dogs in a field"
        samples.append(Sample(index, 64, 64, prompt, 7, 0, labels, encoded.getvalue(), "jpg"))
    store = open_store(out)
    commit(store, stage(store, 0, samples, NUMERICS, 1.0, IMAGES))
    table = read_table(store, 0)
    tar = (out / format_shard_file(0, TAR)).read_bytes()
    marker = read_marker(store, 0)
    for number in range(1, shards):
        write_table(out, number, table)
        (out / format_shard_file(number, TAR)).write_bytes(tar)
        size = (out / format_shard_file(number, TABLE)).stat().st_size
        values = {**vars(marker), "first_index": number * IMAGES, "parquet_bytes": size}
        (out / format_shard_file(number, MARKER)).write_text(json.dumps(values))


def write_table(out: Path, number: int, table: pa.Table) -> None:
    """Write the table of a shard's samples as that of another shard."""
    indices = range(number * IMAGES, (number + 1) * IMAGES)
    columns: dict[str, list[Any]] = {
        "index": list(indices),
        "key": [sample_key(index) for index in indices],
        "shard": [format_shard_name(number)] * IMAGES,
    }
    for name, values in columns.items():
        position = table.column_names.index(name)
        field = table.field(position)
        table = table.set_column(position, field, pa.array(values, field.type))
    pq.write_table(table, out / format_shard_file(number, TABLE), compression="zstd")


def measure(operation: str, shards: int) -> dict[str, float]:
    """Return the figures of an operation, measured in a new process."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        if operation == "scan":
            write_markers(Path(folder), shards)
        else:
            write_shards(Path(folder), shards)
        command = [sys.executable, __file__, "--child", operation, folder]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(process.stdout)
    return {"shards": shards, **figures}


def run_operation(operation: str, out: Path) -> dict[str, float]:
    """Run an operation in this process, and return its figures."""
    start = time.perf_counter()
    cpu_start = time.process_time()
    if operation == "scan":
        shards = sum(1 for _ in scan_markers(open_store(out)))
    else:
        shards = finalize(open_store(out), INFO)["shards"]
    seconds = time.perf_counter() - start
    cpu = time.process_time() - cpu_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "found": shards,
        "seconds": round(seconds, 2),
        "cpu": round(cpu, 2),
        "peak_mb": round(peak),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shards",
        type=int,
        nargs="*",
        default=[2000, 20_000, 200_000],
        help="numbers of shards of the scan",
    )
    parser.add_argument(
        "--finalize",
        type=int,
        nargs="*",
        default=[100, 1000],
        help="numbers of shards of finalising",
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.child:
        operation, folder = args.child
        print(json.dumps(run_operation(operation, Path(folder))))
        return
    rows = {
        "scan": [measure("scan", shards) for shards in args.shards],
        "finalize": [measure("finalize", shards) for shards in args.finalize],
    }
    if args.json:
        print(json.dumps(rows))
        return
    for operation, figures in rows.items():
        print(f"{operation:<10}{'shards':>9}{'seconds':>10}{'cpu s':>10}{'peak MB':>10}")
        for row in figures:
            cells = [f"{'':<10}{row['shards']:>9}"]
            cells += [f"{row[column]:>10}" for column in ("seconds", "cpu", "peak_mb")]
            print("".join(cells))


if __name__ == "__main__":
    main()
