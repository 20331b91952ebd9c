"""Formats of other programs: a folder for each, with its description, reader and writer."""
