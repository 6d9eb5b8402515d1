"""Uploaded and output files, in a folder or at a URL that all gateways share."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from orcd.gateway.api_error import ApiError
from orcd.gateway.api_keys import ApiKey, is_made_by, new_id
from orcd.gateway.batches.shared_folder import LocalFolder, SharedFolder, Workplace
from orcd.gateway.batches.url_folder import UrlFolder

PURPOSES = ("batch", "batch_output", "user_data", "assistants", "fine-tune", "vision", "evals")
KIND = "file-"
"""What the ids of files begin with."""
LEFT_S = 2 * 24 * 3600
"""How long the contents of an expired file are left to batches, each of which ends in a day."""
_EXPIRES = ".expires"


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

    One that expires has an empty ``ID.expires``, too, by which it is found when its time is over. An output file grows
    while its batch runs; its size is what it has by then. Methods raise `ApiError` 503 where the files cannot be
    reached; those that write raise OSError, too.
    """

    def __init__(self, folder: SharedFolder) -> None:
        self._folder = folder

    @classmethod
    def at(cls, place: str) -> FileStore:
        """In a folder of this machine, or at a URL. Raises `InvalidRequest` if that cannot be used."""
        return cls(UrlFolder(place) if "://" in place else LocalFolder(Path(place)))

    def workplace(self) -> AbstractContextManager[Workplace]:
        """Where a batch writes its files."""
        return self._folder.workplace()

    def is_readable(self, file_id: str) -> bool:
        """Whether this gateway can read the file now."""
        try:
            return self._folder.size(data_name(file_id)) >= 0
        except (OSError, ApiError):
            return False

    async def write(
        self, key: ApiKey, chunks: AsyncIterable[bytes], *, filename: str, purpose: str, life_s: int | None
    ) -> FileObject:
        """Keep a new file, for ``life_s`` or until it is deleted."""
        file_id = new_id(KIND, key.tag)
        data = data_name(file_id)
        with self.workplace() as place:
            try:
                with place.path(data).open("xb") as file:
                    async for chunk in chunks:
                        await asyncio.to_thread(file.write, chunk)
                    file.flush()
                    await asyncio.to_thread(os.fsync, file.fileno())
                await asyncio.to_thread(place.keep, data)
                return await asyncio.to_thread(
                    self.describe, place, file_id, filename=filename, purpose=purpose, life_s=life_s
                )
            except BaseException:
                place.path(data).unlink(missing_ok=True)
                raise

    def describe(
        self, place: Workplace, file_id: str, *, filename: str, purpose: str, life_s: int | None
    ) -> FileObject:
        """Make a file of the contents that are in ``place``, and kept."""
        now = int(time.time())
        described = FileObject(
            id=file_id,
            bytes=place.path(data_name(file_id)).stat().st_size,
            created_at=now,
            filename=filename[:200],
            purpose=purpose,
            expires_at=None if life_s is None else now + life_s,
        )
        if life_s is not None:
            place.path(file_id + _EXPIRES).touch()
            place.keep(file_id + _EXPIRES)
        temporary = place.path(f"{file_id}.new")
        temporary.write_bytes(msgspec.json.encode(described))
        temporary.replace(place.path(_description(file_id)))
        place.keep(_description(file_id))
        return described

    def find(self, key: ApiKey, file_id: str, param: str = "file_id") -> FileObject:
        """The caller's file. Raises `ApiError` 404, which names the field ``param``."""
        if is_made_by(key, file_id, KIND):
            try:
                described = _file.decode(self._folder.read(_description(file_id)))
                if described.expires_at is not None and time.time() >= described.expires_at:
                    raise _not_found(param)
                return msgspec.structs.replace(described, bytes=self._folder.size(data_name(file_id)))
            except (FileNotFoundError, msgspec.MsgspecError):
                pass
        raise _not_found(param)

    def open(self, file_id: str) -> BinaryIO:
        """Read what a file holds that `find` has found. Raises `ApiError` 404 if it has been deleted since."""
        try:
            return self._folder.open(data_name(file_id))
        except FileNotFoundError:
            raise _not_found("file_id") from None

    def list_all(self, key: ApiKey) -> list[FileObject]:
        """The caller's files, the newest first."""
        found = []
        for name in self._folder.names(f"{KIND}{key.tag}"):
            if not name.endswith(".json"):
                continue
            try:
                found.append(self.find(key, name.removesuffix(".json")))
            except ApiError as error:
                if error.status != 404:  # deleted meanwhile, or another's
                    raise
        return sorted(found, key=lambda file: (file.created_at, file.id), reverse=True)

    def expiring(self) -> list[str]:
        """The ids of the files of all keys that have expired, or will."""
        return [name.removesuffix(_EXPIRES) for name in self._folder.names(KIND) if name.endswith(_EXPIRES)]

    def delete_if_over(self, file_id: str) -> None:
        """Forget a file whose time has long been over."""
        with suppress(FileNotFoundError, msgspec.MsgspecError):  # it is being written, or deleted
            expires_at = _file.decode(self._folder.read(_description(file_id))).expires_at
            if expires_at is not None and time.time() >= expires_at + LEFT_S:
                self.delete(file_id)

    def delete(self, file_id: str) -> None:
        """Forget a file that `find` has found, and the journal of a batch that wrote it."""
        self._folder.delete(_description(file_id))
        for name in self._folder.names(f"{file_id}."):
            self._folder.delete(name)


def data_name(file_id: str) -> str:
    """What has the contents of a file."""
    return f"{file_id}.data"


def _description(file_id: str) -> str:
    return f"{file_id}.json"


def _not_found(param: str) -> ApiError:
    return ApiError(404, "there is no such file", code="not_found", param=param)
