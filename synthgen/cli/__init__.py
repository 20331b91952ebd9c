"""The command line: one file a command."""

from synthgen.cli.main import main, parse, parser

__all__ = ["main", "parse", "parser"]
