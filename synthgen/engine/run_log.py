"""The log of an output folder, `log.jsonl`: what each run did with the dataset, one event a line.

A later run appends its lines. An object store cannot append to a file, so there the lines of a
minute become a new file `log.jsonl/TIME.jsonl`.

A line is {"time", "level", "event", …}: the time in UTC (ISO 8601); the level info, warning or
error; the event in words; then the fields of the event. Everything that synthgen logs while a run
holds the lock is recorded, including warnings and retries.
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

FLUSH_SECONDS = 60.0  # time after which the lines for an object store are written

SECRETS = re.compile(
    r"hf_\w{8,}"
    r"|(?<=://)[^/@\s]+(?=@)"
    r"|(?:(?<=token=)|(?<=secret=)|(?<=password=)|(?<=signature=)|(?<=Bearer ))[^&\s'\"]+",
    re.I,
)


class LineHandler(logging.Handler, ABC):
    """A handler that stores each log record as a line of JSON."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    @abstractmethod
    def append(self, line: str) -> None:
        """Store a line."""

    def emit(self, record: logging.LogRecord) -> None:
        created = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": created.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        try:
            self.append(SECRETS.sub("***", json.dumps(line)) + "\n")
        except (OSError, StoreFailedError, StoreRefusedError):
            # The run itself reports a full disk or a store that fails.
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Do nothing: an error of the log must not end a run that could continue without it."""


class FileHandler(LineHandler):
    """A handler that appends each line to a file in one write.

    If a killed run left an unfinished line at the end of the file, a line break is added first.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def append(self, line: str) -> None:
        with self.path.open("a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = "\n" + line
            file.write(line.encode())


class StoreHandler(LineHandler):
    """A handler that writes the lines of each minute to a new file of an object store."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.lines: list[str] = []
        self.last_flush = time.monotonic()

    def append(self, line: str) -> None:
        self.lines.append(line)
        if time.monotonic() - self.last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.lines:
            name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}"
            self.store.write(f"{JOURNAL}/{name}.jsonl", "".join(self.lines))
            self.lines.clear()
        self.last_flush = time.monotonic()

    def close(self) -> None:
        with suppress(StoreFailedError, StoreRefusedError):
            self.flush()
        super().close()


def collect_facts(**values: Any) -> dict[str, Any]:
    """Return the fields of an event: `log.info("run started", extra=collect_facts(images=8))`."""
    return {"facts": values}


@contextmanager
def log_to_output(store: Store) -> Iterator[None]:
    """Append what synthgen logs to the log of an output folder while the block runs.

    An error that ends the block is logged too.
    """
    logger = logging.getLogger("synthgen")
    handler: LineHandler
    if isinstance(store, LocalStore):
        handler = FileHandler(store.root / JOURNAL)
    else:
        handler = StoreHandler(store)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except Exception as error:
        record = logger.makeRecord(
            "synthgen", logging.ERROR, "", 0, "run failed: %s", (str(error),), None
        )
        handler.handle(record)
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(level)
