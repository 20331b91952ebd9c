"""Parquet, through files that Arrow opens itself.

Arrow reads ahead in threads of its own. Given a Python file, such a thread can need the interpreter
while the interpreter exits, and the program then aborts after its work is done
(apache/arrow #34314). Therefore Arrow never gets a Python file: a small table is encoded and
decoded in memory, and a large one is a file that Arrow opens by its path.
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
    """Return the table in the bytes of a Parquet file.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: they are not a Parquet file.
    """
    with open_parquet(pa.BufferReader(data)) as file:
        return file.read(use_threads=False)


def open_parquet(source: pa.NativeFile) -> pq.ParquetFile:
    """Return a reader of Parquet, which holds one row group in memory at a time.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: the source is not a Parquet file.
    """
    return pq.ParquetFile(source, pre_buffer=False)


def open_writer(
    sink: pa.NativeFile, schema: pa.Schema, compression: str = "snappy"
) -> pq.ParquetWriter:
    """Return a writer of Parquet; the sink stays open when the writer is closed."""
    return pq.ParquetWriter(sink, schema, compression=compression)


def count_rows(path: Path) -> int:
    """Return the number of rows of a Parquet file, read from its footer.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: the file cannot be read.
    """
    with open_input(path) as source, open_parquet(source) as file:
        return int(file.metadata.num_rows)


def open_input(path: Path) -> pa.NativeFile:
    """Open a file of this machine for Arrow to read."""
    return fs.LocalFileSystem().open_input_file(str(path.absolute()))


def open_output(path: Path) -> pa.NativeFile:
    """Open a file of this machine for Arrow to write, and empty it."""
    return fs.LocalFileSystem().open_output_stream(str(path.absolute()), compression=None)
