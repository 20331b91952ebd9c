"""Parquet, through files that Arrow opens itself.

Arrow reads ahead in threads of its own. Given a Python file, such a thread can need the interpreter while that ends, and
then the program aborts after its work is done (apache/arrow #34314). So no Python file reaches Arrow: a small table is
encoded and decoded in memory, and a large one is a file that Arrow opens by its path.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs


def encode_table(table: pa.Table) -> bytes:
    """Return the table as the bytes of a Parquet file, compressed with zstd."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def decode_table(data: bytes) -> pa.Table:
    """Return the table that the bytes of a Parquet file hold.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: they are none.
    """
    with open_parquet(pa.BufferReader(data)) as file:
        return file.read(use_threads=False)


def open_parquet(source: pa.NativeFile) -> pq.ParquetFile:
    """Return a reader of Parquet; of what it reads it holds one row group at a time.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: the file is no Parquet.
    """
    return pq.ParquetFile(source, pre_buffer=False)


def open_writer(
    sink: pa.NativeFile, schema: pa.Schema, compression: str = "snappy"
) -> pq.ParquetWriter:
    """Return a writer of Parquet; the sink stays open when the writer is closed."""
    return pq.ParquetWriter(sink, schema, compression=compression)


def count_rows(path: Path) -> int:
    """Return how many rows a Parquet file has, which stands at its end.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: the file cannot be read.
    """
    with open_input(path) as source, open_parquet(source) as file:
        return int(file.metadata.num_rows)


def open_input(path: Path) -> pa.NativeFile:
    """Open a file of this machine for Arrow to read."""
    return fs.LocalFileSystem().open_input_file(str(path.absolute()))


def open_output(path: Path) -> pa.NativeFile:
    """Open a file of this machine for Arrow to write; what it held is gone."""
    return fs.LocalFileSystem().open_output_stream(str(path.absolute()), compression=None)
