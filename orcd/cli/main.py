"""``orcd``: the command line as a whole."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from orcd.cli.command_line import SETTINGS, SuggestingGroup, interrupted_by_signals, prepare_standard_streams, run

MODULES = {
    "job_commands": ("generate", "cancel", "status", "follow"),
    "batch_commands": ("batch",),
    "queue_commands": ("queue", "jobs", "dead", "migrate"),
    "worker_commands": ("workers", "drain", "stop", "doctor"),
    "top_command": ("top",),
    "gateway_command": ("gateway",),
    "process_commands": ("demo", "worker", "flower", "plan", "inspect", "tokenize", "render", "logits", "bench"),
}
"""The modules of this package that define commands, with the commands of each, its ``COMMANDS``."""


class CommandGroup(SuggestingGroup):
    """The commands of `MODULES`; a module is imported when one of its commands is asked for.

    Clients of Redis and Celery take longer to import than most commands run, and those that become another program
    need none.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click gives it
        """The names of all commands."""
        return sorted(name for names in MODULES.values() for name in names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click gives it
        """The command of that name, or None."""
        module = next((module for module, names in MODULES.items() if cmd_name in names), None)
        if module is None:
            return None
        commands: tuple[click.Command, ...] = import_module(f"orcd.cli.{module}").COMMANDS
        return next(command for command in commands if command.name == cmd_name)


@click.group(cls=CommandGroup, no_args_is_help=False, context_settings=SETTINGS)
@click.version_option(package_name="orcd")
def cli() -> None:
    """A message-queue batch worker for large language models.

    \b
      orcd demo                                  see the whole system run on this machine
      orcd worker --model M.gguf --device cpu    serve a model
      orcd generate "Write a haiku about rain"   ask it something
      orcd batch prompts.jsonl results.jsonl     ask it many things
      orcd workers; orcd queue; orcd top         see what serves and what waits

    Settings come from ORCD_ environment variables; flags win. `orcd COMMAND --help` explains a command.
    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """


def main() -> None:
    """The ``orcd`` command."""
    # redis-py imports OpenTelemetry's metrics where they are installed, for figures that no command asks it for: it is
    # a fifth of what most commands compute.
    sys.modules.setdefault("opentelemetry.sdk.metrics", None)  # type: ignore[arg-type]
    prepare_standard_streams()
    with interrupted_by_signals():
        exit_code = run(cli, sys.argv[1:])
    sys.exit(exit_code)
