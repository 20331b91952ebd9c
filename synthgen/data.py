"""The deprecated module of the reader, which is now imported from `synthgen`."""

import warnings

from synthgen.dataset.reader import as_coco, open_dataset

__all__ = ["as_coco", "open_dataset"]

warnings.warn(
    "synthgen.data is deprecated: write `from synthgen import open_dataset, as_coco`",
    DeprecationWarning,
    stacklevel=2,
)
