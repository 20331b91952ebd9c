"""Job files: their keys, and how they are read and validated."""

from synthgen.config.job import Job, OutputSpec
from synthgen.config.loading import find_recipe, list_recipe_names, load_job, load_training
from synthgen.yamlfile import ConfigError

__all__ = [
    "ConfigError",
    "Job",
    "OutputSpec",
    "find_recipe",
    "list_recipe_names",
    "load_job",
    "load_training",
]
