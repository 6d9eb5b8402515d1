"""Where all gateways have their files: a folder that each of them mounts. `UrlFolder` is the other kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, Protocol

from orcd.errors import InvalidRequest
from orcd.gateway.api_error import ApiError


@contextmanager
def reaching() -> Iterator[None]:
    """Raises FileNotFoundError, and for all other errors, of which every kind of store has its own, `ApiError` 503."""
    try:
        yield
    except (FileNotFoundError, ApiError):
        raise
    except Exception as error:
        raise unavailable(error) from None


def unavailable(error: Exception) -> ApiError:
    """What a call is answered that needs files which cannot be reached, or that the disk has no room for."""
    return ApiError(503, f"the gateway's files cannot be used ({reason(error)}); try again", code="files_unavailable")


def reason(error: BaseException) -> str:
    """What went wrong, without the texts of a store's own errors, which may hold its address and more."""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__


class Workplace(Protocol):
    """A folder of this machine in which files are written, and from which they get to the other gateways."""

    def path(self, name: str) -> Path:
        """Where the file is on this machine."""

    def fetch(self, name: str) -> None:
        """Bring here what the others have of the file, if they have it."""

    def keep_part(self, name: str) -> None:
        """Give the others what there is of a file by now, unless they have it whole."""

    def keep(self, name: str) -> None:
        """Give the others the whole file."""


class SharedFolder(Protocol):
    """Files by name. Raises FileNotFoundError for one that is not there, `ApiError` 503 for what else goes wrong."""

    def read(self, name: str) -> bytes:
        """What is in a file."""

    def size(self, name: str) -> int:
        """How many bytes it has by now."""

    def open(self, name: str) -> BinaryIO:
        """Read it bit by bit."""

    def names(self, prefix: str) -> list[str]:
        """The files whose names begin so."""

    def delete(self, name: str) -> None:
        """Forget it, if it is there."""

    def workplace(self) -> AbstractContextManager[Workplace]:
        """A place to write files in. What was not kept is gone at its end."""


class LocalFolder:
    """A folder of this machine, in which files are written in place: others see them grow."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if it is not there, and write to it. Raises `InvalidRequest` if that cannot be."""
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InvalidRequest(
                f"files_dir: no file can be kept in {folder} ({error.strerror}); name a folder that may be written to"
            ) from None

    def read(self, name: str) -> bytes:
        """See `SharedFolder`."""
        with reaching():
            return self.path(name).read_bytes()

    def size(self, name: str) -> int:
        """See `SharedFolder`."""
        with reaching():
            return self.path(name).stat().st_size

    def open(self, name: str) -> BinaryIO:
        """See `SharedFolder`."""
        with reaching():
            return self.path(name).open("rb")

    def names(self, prefix: str) -> list[str]:
        """See `SharedFolder`."""
        with reaching():
            return [path.name for path in self._folder.glob(f"{prefix}*")]

    def delete(self, name: str) -> None:
        """See `SharedFolder`."""
        with reaching():
            self.path(name).unlink(missing_ok=True)

    @contextmanager
    def workplace(self) -> Iterator[Workplace]:
        """See `SharedFolder`."""
        yield self

    def path(self, name: str) -> Path:
        """See `Workplace`."""
        return self._folder / name

    def fetch(self, name: str) -> None:
        """See `Workplace`."""

    def keep_part(self, name: str) -> None:
        """See `Workplace`."""

    def keep(self, name: str) -> None:
        """See `Workplace`."""
