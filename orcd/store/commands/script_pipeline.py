"""Calls of scripts that are sent together, also with other commands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from redis.exceptions import NoScriptError, RedisError

from orcd.store.commands.redis_script import RedisScript


class ScriptPipeline:
    """Commands and calls of scripts that Redis gets in one go.

    redis-py's pipeline asks before each whether Redis knows the scripts, which takes another round trip. Here a script
    that it turns out not to know, as it was flushed or never called, is sent once more as text. A script that ran
    is not called again; what else follows on the one that did not run is: it may depend on it.
    """

    def __init__(self) -> None:
        self._commands: list[Sequence[Any]] = []
        self._texts: dict[int, str] = {}

    @classmethod
    def of(cls, script: RedisScript, arguments_of_all: Iterable[Sequence[Any]]) -> ScriptPipeline:
        """Calls of one script."""
        pipeline = cls()
        for arguments in arguments_of_all:
            pipeline.call(script, arguments)
        return pipeline

    def call(self, script: RedisScript, arguments: Sequence[Any]) -> None:
        """Add a call of a script, whose own connection is not used."""
        self._texts[len(self._commands)] = script.script
        self._commands.append(["EVALSHA", script.sha, 0, *arguments])

    def add(self, *command: Any) -> None:
        """Add another command."""
        self._commands.append(command)

    def execute(self, connection: Any, *, raise_on_error: bool = True) -> list[Any]:
        """Send all to a ``redis.Redis``; an answer for each. Raises the first error, or leaves errors among them."""
        answers = self._send(connection.pipeline(transaction=False), range(len(self._commands)))
        if indices := self._unknown(answers):
            self._replace(answers, indices, self._send(connection.pipeline(transaction=False), indices))
        return _checked(answers) if raise_on_error else answers

    async def execute_async(self, connection: Any, *, raise_on_error: bool = True) -> list[Any]:
        """`execute` with a ``redis.asyncio.Redis``."""
        answers = await self._send(connection.pipeline(transaction=False), range(len(self._commands)))
        if indices := self._unknown(answers):
            self._replace(answers, indices, await self._send(connection.pipeline(transaction=False), indices))
        return _checked(answers) if raise_on_error else answers

    def _send(self, pipeline: Any, indices: Sequence[int]) -> Any:
        for index in indices:
            pipeline.execute_command(*self._commands[index])
        return pipeline.execute(raise_on_error=False)

    def _unknown(self, answers: Sequence[Any]) -> list[int]:
        """What is to be sent again, the scripts as text."""
        missing = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        for index in missing:
            self._commands[index] = ["EVAL", self._texts[index], *self._commands[index][2:]]
        if not missing:
            return []
        behind = range(missing[0], len(answers))
        return [index for index in behind if index in missing or index not in self._texts]

    @staticmethod
    def _replace(answers: list[Any], indices: Sequence[int], again: Sequence[Any]) -> None:
        for index, answer in zip(indices, again, strict=True):
            answers[index] = answer


def _checked(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, RedisError):
            raise answer
    return answers
