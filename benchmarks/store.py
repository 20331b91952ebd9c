"""What many shards cost the driver: the scan of a resume, and finalising; seconds and memory against their number.

    python benchmarks/store.py [--shards 2000 20000 200000] [--finalize 100 1000] [--json]

The shards are synthetic: markers beside empty files for the scan, one real shard's table under other numbers for finalising.
Each figure is of a process of its own; "cpu" is its processor time, which a busy machine changes less than its seconds.
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
    read_marker,
    scan,
    shard_file,
    shard_name,
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
IMAGES, BOXES = 250, 10  # of a shard that is finalised


def write_markers(out: Path, shards: int) -> None:
    """Committed shards without content."""
    (out / "shards").mkdir()
    text = json.dumps(
        asdict(Marker(250, 0, 0, "0" * 64, "0" * 32, 0, "0" * 64, NUMERICS, 1.0, 250)), indent=1
    )
    for number in range(shards):
        (out / shard_file(number, MARKER)).write_text(text)
        for suffix in (TAR, TABLE):
            (out / shard_file(number, suffix)).touch()


def write_shards(out: Path, shards: int) -> None:
    """Committed shards whose tables differ in their numbers alone; their tars are one (finalising reads the first)."""
    label = Annotation(
        bbox=(1.5, 2.5, 30.25, 40.0), category_id=18, category="dog", phrase="a dog", area=1210.0
    )
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "JPEG")
    first = [
        Sample(i, 64, 64, "10 dogs in a field", 7, 0, (label,) * BOXES, picture.getvalue(), "jpg")
        for i in range(IMAGES)
    ]
    commit(open_store(out), stage(open_store(out), 0, first, NUMERICS, 1.0, IMAGES))
    table, tar = read_table(open_store(out), 0), (out / shard_file(0, TAR)).read_bytes()
    marker = read_marker(open_store(out), 0)
    for number in range(1, shards):
        write_as(out, number, table)
        (out / shard_file(number, TAR)).write_bytes(tar)
        parquet = (out / shard_file(number, TABLE)).stat().st_size
        text = json.dumps(
            {**vars(marker), "first_index": number * IMAGES, "parquet_bytes": parquet}
        )
        (out / shard_file(number, MARKER)).write_text(text)


def write_as(out: Path, number: int, table: pa.Table) -> None:
    """The table of a shard's samples as that of another shard."""
    indices = [number * IMAGES + i for i in range(IMAGES)]
    new = {
        "index": indices,
        "key": [sample_key(i) for i in indices],
        "shard": [shard_name(number)] * IMAGES,
    }
    for name, values in new.items():
        place = table.column_names.index(name)
        table = table.set_column(
            place, table.field(place), pa.array(values, table.field(place).type)
        )
    pq.write_table(table, out / shard_file(number, TABLE), compression="zstd")


def measured(what: str, shards: int) -> dict[str, float]:
    """The figures of one process."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        (write_markers if what == "scan" else write_shards)(Path(folder), shards)
        command = [sys.executable, __file__, "--child", what, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return {"shards": shards, **figures}


def child(what: str, out: Path) -> dict[str, float]:
    began, cpu = time.perf_counter(), time.process_time()
    found = (
        sum(1 for _ in scan(open_store(out)))
        if what == "scan"
        else finalize(open_store(out), INFO)["shards"]
    )
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "found": found,
        "seconds": round(seconds, 2),
        "cpu": round(cpu, 2),
        "peak_mb": round(peak),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--shards", type=int, nargs="*", default=[2000, 20_000, 200_000], help="of the scan"
    )
    parser.add_argument(
        "--finalize", type=int, nargs="*", default=[100, 1000], help="of finalising"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child[0], Path(args.child[1]))))
        return
    rows = {
        what: [measured(what, n) for n in counts]
        for what, counts in (("scan", args.shards), ("finalize", args.finalize))
    }
    if args.json:
        print(json.dumps(rows))
        return
    for what, figures in rows.items():
        print(f"{what:<10}{'shards':>9}{'seconds':>10}{'cpu s':>10}{'peak MB':>10}")
        for row in figures:
            print(
                f"{'':<10}{row['shards']:>9}{row['seconds']:>10}{row['cpu']:>10}{row['peak_mb']:>10}"
            )


if __name__ == "__main__":
    main()
