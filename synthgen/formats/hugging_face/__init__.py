"""Parquet for Hugging Face `datasets`."""

from synthgen.formats.base import Format

FORMAT = Format(name="hf", order=4, writer="synthgen.formats.hugging_face.writer")
