"""``orcd``: the command line as a whole."""

from __future__ import annotations

import sys

import click

from orcd.cli import (
    batch_commands,
    gateway_command,
    job_commands,
    process_commands,
    queue_commands,
    top_command,
    worker_commands,
)
from orcd.cli.command_line import SETTINGS, run


@click.group(no_args_is_help=False, context_settings=SETTINGS)
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


MODULES = (
    job_commands,
    batch_commands,
    queue_commands,
    worker_commands,
    top_command,
    gateway_command,
    process_commands,
)
for module in MODULES:
    for command in module.COMMANDS:
        cli.add_command(command)


def main() -> None:
    """The ``orcd`` command."""
    sys.exit(run(cli, sys.argv[1:]))
