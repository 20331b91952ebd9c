"""Labelled detection datasets that do not exist yet: layouts, pictures painted to them, trustworthy shards."""

__version__ = "0.1.0"
