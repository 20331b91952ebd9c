"""A store: files under their names, with a few verbs, none of which leaves half a file."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

STAGING = ".staging"
TEMPORARY = ".tmp"

Fill = Callable[[BinaryIO], object]


class Store(ABC):
    """The files of a folder or URL, by their names in it, such as `shards/000000.tar`.

    A name either has its whole content or does not exist. Reading a name that does not exist raises FileNotFoundError.
    """

    threads = 4  # requests that are worth making at the same time

    @abstractmethod
    def __str__(self) -> str:
        """The folder or URL, as the user knows it."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All bytes of a file."""

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to read from, with seek."""

    @abstractmethod
    def open_table(self, name: str) -> AbstractContextManager[Any]:
        """A Parquet file as Arrow reads it (`synthgen.storage.parquet`)."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""

    @abstractmethod
    def sizes(self, folder: str) -> Iterator[tuple[str, int]]:
        """Name in the folder and bytes of each file that lies in it, in no order."""

    @abstractmethod
    def replacing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to write to, that becomes `name` if the block ends without an error."""

    @abstractmethod
    def replacing_table(self, name: str) -> AbstractContextManager[Any]:
        """The same for a Parquet file, as Arrow writes it (`synthgen.storage.parquet`)."""

    @abstractmethod
    def stage(self, name: str, fill: Fill) -> str:
        """Write a file under a new, unique name in the staging folder, which is returned.

        Args:
            fill: writes the content to the file that it is given; called again if the store fails.
        """

    @abstractmethod
    def promote(self, staged: str, name: str) -> None:
        """Give a staged file its final name, durably."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file, if it exists."""

    @abstractmethod
    def delete_folder(self, folder: str) -> None:
        """Remove a folder with all that is in it, if it exists."""

    @abstractmethod
    def clean(self, folders: Iterable[str] = ()) -> None:
        """Remove staged and temporary files that a killed process left. Only for the holder of the lock.

        Args:
            folders: those that may hold temporary files, besides the store's own.
        """

    def write(self, name: str, content: str | bytes) -> None:
        """Replace a file at once."""
        with self.replacing(name) as file:
            file.write(content.encode() if isinstance(content, str) else content)

    def exists(self, name: str) -> bool:
        return self.size(name) is not None

    def path(self, name: str) -> str:
        """How a file is shown to the user."""
        return f"{self}/{name}"
