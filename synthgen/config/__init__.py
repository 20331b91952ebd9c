"""Job files: what they say, and how they are read and checked."""

from synthgen.config.job import Job, OutputSpec
from synthgen.config.loading import find_recipe, load_job, load_training, recipe_names
from synthgen.yamlfile import ConfigError

__all__ = [
    "ConfigError",
    "Job",
    "OutputSpec",
    "find_recipe",
    "load_job",
    "load_training",
    "recipe_names",
]
