"""The former place of the exports; import them from `synthgen`."""

import warnings

from synthgen.formats.export import ExportSpec, export_dataset

__all__ = ["ExportSpec", "export_dataset"]

warnings.warn(
    "synthgen.export is deprecated: write `from synthgen import ExportSpec, export_dataset`",
    DeprecationWarning,
    stacklevel=2,
)
