"""Files at a URL that fsspec reads and writes, as ``s3://bucket/folder``.

What is kept there can only be written whole. So files are written on this machine and copied: a file that still grows
as ``NAME.part``, which counts until ``NAME`` is there. A gateway that was given up, and goes on with a batch that
another one has ended since, can only write parts, or the same file once more.

A part is replaced at any time, by one that is shorter where another gateway has taken the batch over. So whoever reads
one gets a copy, made at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, TypeVar, cast

from orcd.errors import InvalidRequest
from orcd.gateway.batches.shared_folder import Workplace, reaching

_PART = ".part"
_RENAMING = {"file", "local", "sftp", "ssh"}
"""Stores that show files while they are written, and rename one onto another. Others show a file once it is whole."""

T = TypeVar("T")


class UrlFolder:
    """See `SharedFolder`. Raises `InvalidRequest` if the URL is no use; it may hold a password, and is in no error."""

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs  # of an extra of its own
        except ImportError:
            raise InvalidRequest("files_dir: a URL needs fsspec; run: pip install 'orcd[files]'") from None
        kind = url.partition("://")[0]
        try:
            self._system, self._root = cast(tuple[Any, str], url_to_fs(url))
            self._system.makedirs(self._root, exist_ok=True)
        except ImportError as error:
            raise InvalidRequest(f"files_dir: URLs of the kind {kind} need a package: {error}") from None
        except Exception as error:  # every kind of store has its own
            raise InvalidRequest(
                f"files_dir: the folder at {kind}:// cannot be used ({type(error).__name__}); check the URL, and the "
                f"credentials where its package of fsspec looks for them"
            ) from None

    def read(self, name: str) -> bytes:
        """See `SharedFolder`."""
        with reaching():
            return bytes(self._system.cat_file(self._at(name)))

    def size(self, name: str) -> int:
        """See `SharedFolder`."""
        with reaching():
            return self._newest(name, lambda path: int(self._system.info(path)["size"]))

    def open(self, name: str) -> BinaryIO:
        """See `SharedFolder`."""
        with reaching():
            return self._newest(name, self._open)

    def names(self, prefix: str) -> list[str]:
        """See `SharedFolder`."""
        with reaching():
            self._system.invalidate_cache()
            paths = self._system.ls(self._root, detail=False)
        return [name for path in paths if (name := path.rpartition("/")[2]).startswith(prefix)]

    def delete(self, name: str) -> None:
        """See `SharedFolder`."""
        with reaching(), suppress(FileNotFoundError):
            self._system.rm_file(self._at(name))

    @contextmanager
    def workplace(self) -> Iterator[Workplace]:
        """See `SharedFolder`."""
        with TemporaryDirectory(prefix="orcd-gateway-") as folder:
            yield _UrlWorkplace(self, Path(folder))

    def download(self, name: str, path: Path) -> None:
        """Copy a file to ``path``."""
        with reaching():
            self._newest(name, lambda kept: self._system.get_file(kept, str(path)))

    def upload(self, path: Path, name: str) -> None:
        """Copy the file at ``path``."""
        kinds = self._system.protocol
        renames = not _RENAMING.isdisjoint({kinds} if isinstance(kinds, str) else kinds)
        place = self._at(name)
        copy = f"{place}.{token_hex(4)}.new" if renames else place
        with reaching():
            try:
                self._system.put_file(str(path), copy)
                if renames:
                    self._system.mv(copy, place)
            except Exception:
                if renames:  # each try has a copy of its own, and they would fill what may be full already
                    with suppress(Exception):
                        self._system.rm_file(copy)
                raise

    def upload_part(self, path: Path, name: str) -> None:
        """Copy the file at ``path``, from which there is more to come."""
        self.upload(path, name + _PART)

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _newest(self, name: str, read: Callable[[str], T]) -> T:
        """What ``read`` makes of the file, or of as much of it as there is."""
        whole = self._at(name)
        for path in (whole, whole + _PART, whole):  # a part goes once the whole file is there
            self._system.invalidate_cache()
            with suppress(FileNotFoundError):
                return read(path)
        raise FileNotFoundError(name)

    def _open(self, path: str) -> BinaryIO:
        if not path.endswith(_PART):
            return cast(BinaryIO, self._system.open(path, "rb"))
        with TemporaryDirectory(prefix="orcd-gateway-") as folder:
            copy = Path(folder, "part")
            self._system.get_file(path, str(copy))
            return copy.open("rb")


class _UrlWorkplace:
    def __init__(self, folder: UrlFolder, place: Path) -> None:
        self._folder = folder
        self._place = place

    def path(self, name: str) -> Path:
        return self._place / name

    def fetch(self, name: str) -> None:
        try:
            self._folder.download(name, self.path(name))
        except FileNotFoundError:
            self.path(name).unlink(missing_ok=True)

    def keep_part(self, name: str) -> None:
        self._folder.upload_part(self.path(name), name)

    def keep(self, name: str) -> None:
        self._folder.upload(self.path(name), name)
        self._folder.delete(name + _PART)
