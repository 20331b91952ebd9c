"""The interface of a store: files by name, none of which is ever half written."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

STAGING = ".staging"
TEMPORARY = ".tmp"

Fill = Callable[[BinaryIO], object]


class Store(ABC):
    """The files of a folder or URL, by their names in it, such as `shards/000000.tar`.

    A file either has its whole content or does not exist. Reading a file that does not exist raises
    FileNotFoundError.

    Attributes:
        threads: the number of requests that are worth making at the same time.
    """

    threads = 4

    @abstractmethod
    def __str__(self) -> str:
        """Return the folder or URL, as the user knows it."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the content of a file."""

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file to read from; it can seek."""

    @abstractmethod
    def open_table(self, name: str) -> AbstractContextManager[Any]:
        """Open a Parquet file for Arrow to read (`synthgen.storage.parquet`)."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None if it does not exist."""

    @abstractmethod
    def sizes(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield the name in the folder and the bytes of each file in a folder, in no order."""

    @abstractmethod
    def open_replacement(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file to write to, which replaces `name` if the block ends without an error."""

    @abstractmethod
    def open_table_replacement(self, name: str) -> AbstractContextManager[Any]:
        """Do the same for a Parquet file that Arrow writes (`synthgen.storage.parquet`)."""

    @abstractmethod
    def stage(self, name: str, fill: Fill) -> str:
        """Write a file under a new, unique name in the staging folder, and return that name.

        Args:
            fill: writes the content to the file that it is given. It is called again if the store
                fails.
        """

    @abstractmethod
    def promote(self, staged: str, name: str) -> None:
        """Give a staged file its final name, durably."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a file if it exists."""

    @abstractmethod
    def delete_folder(self, folder: str) -> None:
        """Delete a folder with everything in it, if it exists."""

    @abstractmethod
    def clean(self, folders: Iterable[str] = ()) -> None:
        """Delete the orphaned staged and temporary files of a killed process.

        Only the lock holder may call it.

        Args:
            folders: folders that may hold temporary files, besides the store's own.
        """

    def write(self, name: str, content: str | bytes) -> None:
        """Replace a file atomically."""
        data = content.encode() if isinstance(content, str) else content
        with self.open_replacement(name) as file:
            file.write(data)

    def exists(self, name: str) -> bool:
        """Return whether a file exists."""
        return self.size(name) is not None

    def path(self, name: str) -> str:
        """Return the path or URL of a file, as shown to the user."""
        return f"{self}/{name}"
