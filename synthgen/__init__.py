"""Generate labelled detection datasets.

A sampler places the boxes of an image, a pipeline generates the image for them, and the images are
written in shards, with their labels in COCO files.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synthgen.config.job import Job
    from synthgen.config.loading import load_job
    from synthgen.dataset.check import check_dataset
    from synthgen.dataset.reader import as_coco, open_dataset
    from synthgen.engine.generation import run
    from synthgen.errors import InputError
    from synthgen.formats.export import ExportSpec, export_dataset
    from synthgen.layouts.base import Layout
    from synthgen.pipelines.mixture.pipeline import MixturePipeline
    from synthgen.storage.location import open_store
    from synthgen.yamlfile import ConfigError

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "ExportSpec",
    "InputError",
    "Job",
    "Layout",
    "MixturePipeline",
    "as_coco",
    "check_dataset",
    "export_dataset",
    "load_job",
    "open_dataset",
    "open_store",
    "run",
]

_MODULES = {
    "ConfigError": "synthgen.yamlfile",
    "ExportSpec": "synthgen.formats.export",
    "InputError": "synthgen.errors",
    "Job": "synthgen.config.job",
    "Layout": "synthgen.layouts.base",
    "MixturePipeline": "synthgen.pipelines.mixture.pipeline",
    "as_coco": "synthgen.dataset.reader",
    "check_dataset": "synthgen.dataset.check",
    "export_dataset": "synthgen.formats.export",
    "load_job": "synthgen.config.loading",
    "open_dataset": "synthgen.dataset.reader",
    "open_store": "synthgen.storage.location",
    "run": "synthgen.engine.generation",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    So `import synthgen` loads neither torch nor Ray nor pyarrow.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the names of this module, including those that are not loaded yet."""
    return sorted({*globals(), *__all__})
