"""Commands that need a worker's packages: this process becomes ``python -m tasks`` or ``python -m worker``.

The new program has the same process id, so that signals and exit codes are its own; it reads the arguments and prints
the help.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import click

import orcd
from orcd.cli.command_line import SuggestingGroup
from orcd.errors import InvalidRequest

WORKER_PACKAGES = ("gguf", "huggingface_hub", "jinja2", "llguidance", "numpy", "prometheus_client", "tokenizers")
"""What the extra ``worker`` installs."""
_OURS = Path(orcd.__file__).parents[1]
_TOP_LEVEL = ("tasks", "worker", "kernels")


class ProcessCommand(click.Command):
    """A command that becomes ``python -m PROGRAM VERB ARGUMENTS``; ``packages`` are those of the extra it needs."""

    def __init__(
        self,
        name: str,
        program: str,
        short_help: str,
        *,
        group: str = "",
        extra: str = "worker",
        packages: Sequence[str] = WORKER_PACKAGES,
    ) -> None:
        super().__init__(name, short_help=short_help, add_help_option=False)
        self._program = program
        self._verb = [*group.split(), name]
        self._extra = extra
        self._packages = packages

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Leave all arguments to the program, which knows its options."""
        ctx.args = args
        return args

    def invoke(self, ctx: click.Context) -> NoReturn:
        """Become the program. Raises `InvalidRequest` if a package that it needs is missing, but for its help."""
        missing = [package for package in self._packages if find_spec(package) is None]
        if missing and not {"--help", "-h"} & set(ctx.args):
            raise InvalidRequest(
                f"{ctx.command_path} needs packages that are not installed ({', '.join(missing)}); "
                f"run: pip install 'orcd[{self._extra}]'"
            )
        sys.stdout.flush()
        # -P: modules in the current folder must not pass for ours.
        command = [sys.executable, "-P", "-m", self._program, *self._verb, *ctx.args]
        os.execve(sys.executable, command, environment(os.environ))  # noqa: S606 - nobody's shell is wanted


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """``inherited`` without the entries of PYTHONPATH that hold a module named like one of our programs."""
    result = dict(inherited)
    if path := result.get("PYTHONPATH"):
        result["PYTHONPATH"] = os.pathsep.join(entry for entry in path.split(os.pathsep) if not _shadows(entry))
    return result


def _shadows(entry: str) -> bool:
    """Whether a ``tasks``, ``worker`` or ``kernels`` of a folder or zip file would be imported instead of ours."""
    if Path(entry).resolve() == _OURS:
        return False
    specs = (PathFinder.find_spec(name, [entry]) for name in _TOP_LEVEL)
    return any(spec is not None and spec.loader is not None for spec in specs)  # a folder without modules has no loader


bench = SuggestingGroup(
    "bench",
    help="Measure throughput and latency.",
    no_args_is_help=False,
    commands=[
        ProcessCommand("engine", "worker", "Drive the engine directly, with no queue.", group="bench"),
        ProcessCommand(
            "queue",
            "tasks",
            "Send the same load through a Redis and a worker that are started for it.",
            group="bench",
            extra="local",
        ),
    ],
)

COMMANDS: tuple[click.Command, ...] = (
    ProcessCommand("demo", "tasks", "Run the whole system here, with the model that ships.", extra="local"),
    ProcessCommand("worker", "tasks", "Serve one model on one device."),
    ProcessCommand(
        "flower",
        "tasks",
        "Watch workers and jobs in a browser.",
        extra="flower",
        packages=["flower"],
    ),
    ProcessCommand("plan", "tasks", "Count the tokens of prompt files, find lines that would fail."),
    ProcessCommand("inspect", "worker", "Describe a model file: architecture, tensors, tokenizer, memory."),
    ProcessCommand("tokenize", "worker", "Turn text into token ids and back."),
    ProcessCommand("render", "worker", "Print the prompt that a chat template makes of messages."),
    ProcessCommand("logits", "worker", "Write the logits of every position of some token sequences."),
    bench,
)
