"""`log.jsonl` in the output folder: what runs did with a dataset and when, a line each; later runs add theirs.

A line is {"time", "level", "event", …}: time in UTC (ISO 8601); level info, warning or error; event what happened, in words; then
figures of the event. Whatever synthgen logs while a run holds the output goes there, so warnings and retries do.
"""

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from synthgen.shards.store import JOURNAL

SECRETS = re.compile(
    r"hf_\w{8,}|(?<=://)[^/@\s]+(?=@)|(?:(?<=token=)|(?<=secret=)|(?<=password=)|(?<=signature=)|(?<=Bearer ))[^&\s'\"]+", re.I
)


class JsonLines(logging.Handler):
    """Appends a line for each record, in one write; what a killed run left of its last line is ended first."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage(), **getattr(record, "facts", {})}
        try:
            self.append(SECRETS.sub("***", json.dumps(line)) + "\n")
        except OSError:  # a full disk is told by the run itself
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """The log must not end a run that could go on without it."""

    def append(self, line: str) -> None:
        """Add a line at the end of the file."""
        with self.path.open("a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode())


def facts(**figures: Any) -> dict[str, Any]:
    """Figures of an event: `log.info("run started", extra=facts(images=8))`."""
    return {"facts": figures}


@contextmanager
def journal(out: Path) -> Iterator[None]:
    """While this is open, what synthgen logs is added to the log of an output folder; an error that ends it too."""
    logger = logging.getLogger("synthgen")
    handler, level = JsonLines(out / JOURNAL), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except Exception as error:
        handler.handle(logger.makeRecord("synthgen", logging.ERROR, "", 0, "run failed: %s", (str(error),), None))
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
