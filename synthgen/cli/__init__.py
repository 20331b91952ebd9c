"""The command line: one file for each command."""

from synthgen.cli.main import main, parse, parser

__all__ = ["main", "parse", "parser"]
