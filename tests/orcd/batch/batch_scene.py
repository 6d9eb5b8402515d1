"""A prompt file and its run, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orcd.batch.batch_file import BatchFile, BatchPaths
from orcd.batch.batch_options import BatchOptions
from orcd.batch.batch_run import BatchRun
from orcd.client import Client


class Updates:
    """Keeps what a `Progress` is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, int]] = []

    def update(self, num_done: int, num_failed: int, num_tokens: int) -> None:
        self.told.append((num_done, num_failed, num_tokens))


class Batch:
    """A prompt file of ``num_lines`` prompts, run from its start or where it stopped."""

    def __init__(self, folder: Path, num_lines: int, options: BatchOptions | None = None) -> None:
        self._options = options or BatchOptions()
        self._source = folder / "in.jsonl"
        self._output = folder / "out.jsonl"
        self._errors = folder / "errors.jsonl"
        self._source.write_text("".join(f'{{"prompt": "{number}"}}\n' for number in range(num_lines)))

    def run(self, client: Client, *, fail_fast: bool = False) -> Updates:
        updates = Updates()
        paths = BatchPaths([str(self._source)], str(self._output), str(self._errors))
        with BatchFile(paths, self._options) as file:
            BatchRun(client, file, updates, fail_fast=fail_fast).run()
        return updates

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._output.read_text().splitlines()]

    def failures(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._errors.read_text().splitlines()]
