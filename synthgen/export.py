"""The deprecated module of the exports, which are now imported from `synthgen`."""

import warnings

from synthgen.formats.export import ExportSpec, export_dataset

__all__ = ["ExportSpec", "export_dataset"]

warnings.warn(
    "synthgen.export is deprecated: write `from synthgen import ExportSpec, export_dataset`",
    DeprecationWarning,
    stacklevel=2,
)
