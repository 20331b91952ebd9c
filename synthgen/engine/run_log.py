"""`log.jsonl` in the output folder: what runs did with a dataset and when, a line each; later runs add theirs.

An object store adds nothing to a file, so there the lines are gathered for a minute and become a file `log.jsonl/TIME.jsonl`.

A line is {"time", "level", "event", …}: time in UTC (ISO 8601); level info, warning or error; event what happened, in words; then
figures of the event. Whatever synthgen logs while a run holds the output goes there, so warnings and retries do.
"""

import json
import logging
import os
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from synthgen.dataset.info import JOURNAL
from synthgen.errors import StoreFailedError, StoreRefusedError
from synthgen.storage.base import Store
from synthgen.storage.local import LocalStore

PART_SECONDS = 60.0

SECRETS = re.compile(
    r"hf_\w{8,}|(?<=://)[^/@\s]+(?=@)|(?:(?<=token=)|(?<=secret=)|(?<=password=)|(?<=signature=)|(?<=Bearer ))[^&\s'\"]+",
    re.I,
)


class JsonLines(logging.Handler, ABC):
    """Keeps a line for each record."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    @abstractmethod
    def append(self, line: str) -> None:
        """Keep a line."""

    def emit(self, record: logging.LogRecord) -> None:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": at,
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        try:
            self.append(SECRETS.sub("***", json.dumps(line)) + "\n")
        except (
            OSError,
            StoreFailedError,
            StoreRefusedError,
        ):  # a full disk, or a lost store, is told by the run itself
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """The log must not end a run that could go on without it."""


class File(JsonLines):
    """Each line is appended in one write; what a killed run left of its last line is ended first."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def append(self, line: str) -> None:
        with self.path.open("a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode())


class Parts(JsonLines):
    """Lines of a minute go into a new file each."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store, self.lines, self.began = store, list[str](), time.monotonic()

    def append(self, line: str) -> None:
        self.lines.append(line)
        if time.monotonic() - self.began > PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.lines:
            name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}"
            self.store.write(f"{JOURNAL}/{name}.jsonl", "".join(self.lines))
            self.lines.clear()
        self.began = time.monotonic()

    def close(self) -> None:
        with suppress(StoreFailedError, StoreRefusedError):
            self.flush()
        super().close()


def facts(**figures: Any) -> dict[str, Any]:
    """Figures of an event: `log.info("run started", extra=facts(images=8))`."""
    return {"facts": figures}


@contextmanager
def journal(store: Store) -> Iterator[None]:
    """While this is open, what synthgen logs is added to the log of an output folder; an error that ends it too."""
    logger = logging.getLogger("synthgen")
    handler: JsonLines = (
        File(store.root / JOURNAL) if isinstance(store, LocalStore) else Parts(store)
    )
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except Exception as error:
        handler.handle(
            logger.makeRecord(
                "synthgen", logging.ERROR, "", 0, "run failed: %s", (str(error),), None
            )
        )
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(level)
