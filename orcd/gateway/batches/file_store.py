"""Uploaded and output files in a folder that all gateways share."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterable
from pathlib import Path
from typing import BinaryIO

import msgspec

from orcd.gateway.api_error import ApiError
from orcd.gateway.api_keys import ApiKey, is_made_by, new_id

PURPOSES = ("batch", "batch_output", "user_data", "assistants", "fine-tune", "vision", "evals")
KIND = "file-"
"""What the ids of files begin with."""


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """A file as OpenAI's API describes it; times are Unix seconds."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    object: str = "file"
    status: str = "processed"
    expires_at: int | None = None


_file = msgspec.json.Decoder(FileObject)


class FileStore:
    """Each file is ``ID.data`` beside its description ``ID.json``, which is written last: without it there is no file.

    An output file grows while its batch runs; its size is what it has by then.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, file_id: str) -> Path:
        """Where the contents are."""
        return self._folder / f"{file_id}.data"

    async def write(self, key: ApiKey, chunks: AsyncIterable[bytes], *, filename: str, purpose: str) -> FileObject:
        """Keep a new file. Raises OSError."""
        file_id = new_id(KIND, key.tag)
        num_bytes = 0
        try:
            with self.path(file_id).open("xb") as file:
                async for chunk in chunks:
                    file.write(chunk)
                    num_bytes += len(chunk)
                file.flush()
                os.fsync(file.fileno())
            return self.describe(file_id, filename=filename, purpose=purpose)
        except BaseException:
            self.path(file_id).unlink(missing_ok=True)
            raise

    def describe(self, file_id: str, *, filename: str, purpose: str) -> FileObject:
        """Make the contents that are there a file."""
        described = FileObject(
            id=file_id,
            bytes=self.path(file_id).stat().st_size,
            created_at=int(time.time()),
            filename=filename[:200],
            purpose=purpose,
        )
        temporary = self._folder / f"{file_id}.new"
        temporary.write_bytes(msgspec.json.encode(described))
        temporary.replace(self._description(file_id))
        return described

    def find(self, key: ApiKey, file_id: str, param: str = "file_id") -> FileObject:
        """The caller's file. Raises `ApiError` 404, which names the field ``param``."""
        if is_made_by(key, file_id, KIND):
            try:
                described = _file.decode(self._description(file_id).read_bytes())
                return msgspec.structs.replace(described, bytes=self.path(file_id).stat().st_size)
            except (FileNotFoundError, msgspec.MsgspecError):
                pass
        raise _not_found(param)

    def open(self, file_id: str) -> BinaryIO:
        """Read what a file holds that `find` has found. Raises `ApiError` 404 if it has been deleted since."""
        try:
            return self.path(file_id).open("rb")
        except FileNotFoundError:
            raise _not_found("file_id") from None

    def list_all(self, key: ApiKey) -> list[FileObject]:
        """The caller's files, the newest first."""
        found = []
        for path in self._folder.glob(f"{KIND}{key.tag}*.json"):
            try:
                found.append(self.find(key, path.stem))
            except ApiError:  # deleted meanwhile, or another's
                continue
        return sorted(found, key=lambda file: (file.created_at, file.id), reverse=True)

    def delete(self, file_id: str) -> None:
        """Forget a file that `find` has found, and the journal of a batch that wrote it."""
        self._description(file_id).unlink(missing_ok=True)
        for path in self._folder.glob(f"{file_id}.*"):
            path.unlink(missing_ok=True)

    def _description(self, file_id: str) -> Path:
        return self._folder / f"{file_id}.json"


def _not_found(param: str) -> ApiError:
    return ApiError(404, "there is no such file", code="not_found", param=param)
