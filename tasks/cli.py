"""``orcd``: the command line as a whole. `tasks.job_commands` and `tasks.model_commands` hold most of the commands.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. An error is one line on standard error,
``orcd: CODE: what to do``, with a code of `worker.errors`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from socket import gethostname
from typing import Any

import click

from tasks import job_commands, model_commands, terminal
from worker.errors import Cancelled, InvalidRequest, ModelLoadFailed, OrcdError
from worker.settings import PREFIX, Settings, from_environment, to_environment

INTERRUPTED = 130


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="orcd")
def cli() -> None:
    """A message-queue batch worker for large language models.

    \b
      orcd demo                                  see the whole system run on this machine
      orcd worker --model M.gguf --device cpu    serve a model
      orcd generate "Write a haiku about rain"   ask it something
      orcd batch prompts.jsonl results.jsonl     ask it many things

    Settings come from ORCD_ environment variables; flags win. `orcd COMMAND --help` explains a command.
    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """


@cli.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("orcd-demo-results.jsonl"),
    show_default=True,
    metavar="FILE",
    help="Where the results go, one JSON object a line.",
)
@click.option(
    "--redis",
    "redis_url",
    envvar="ORCD_REDIS_URL",
    metavar="URL",
    help="Redis to use; default: $ORCD_REDIS_URL, or else one that is started for the demo.",
)
def demo(output: Path, redis_url: str | None) -> None:
    """Run the whole system here, with the model that ships.

    Starts Redis and a worker, submits ten prompts, streams the answers, writes a result file and stops everything.
    """
    from tasks.demo.run import Demo

    Demo(output, redis_url).run()


@cli.command()
@click.option("--model", metavar="M.gguf", help="GGUF file to serve; default: $ORCD_MODEL.")
@click.option("--tokenizer", metavar="FILE", help="A tokenizer.json to use instead of the GGUF's own vocabulary.")
@click.option("--device", metavar="DEVICE", help="cuda:0 (default), another GPU, or cpu.")
@click.option("--redis", "redis_url", metavar="URL", help="Redis to take jobs from; default: $ORCD_REDIS_URL.")
@click.option("--name", help="Model name that clients ask for; default: the file's name without .gguf.")
@click.option("--vram-fraction", type=float, metavar="F", help="Part of the GPU's free memory to use; default: 0.9.")
@click.option("--vram-bytes", type=int, metavar="N", help="Most GPU memory to use, in bytes.")
@click.option("--vram-check-s", type=int, metavar="N", help="Seconds between two checks of where that memory is.")
@click.option("--metrics-port", type=int, metavar="N", help="Serve metrics and health on this port of 127.0.0.1.")
def worker(**flags: Any) -> int:
    """Serve one model on one device.

    Takes jobs from Redis until it is told to stop (Ctrl-C or SIGTERM).

    \b
      orcd worker --model qwen2.5-0.5b-instruct-q4_k_m.gguf
      orcd worker --model tiny.gguf --device cpu --redis redis://:password@queue.example:6379/0

    Everything else is set by ORCD_ variables (see the README). `celery -A tasks worker` with the same variables runs
    the same worker.
    """
    settings = from_environment(**flags)
    if not settings.model:
        raise InvalidRequest("model: give --model M.gguf or set ORCD_MODEL")
    for file in filter(None, (settings.model, settings.tokenizer)):
        if not file.startswith("hf:") and not Path(file).is_file():
            raise ModelLoadFailed(f"{file}: is not a file")
    _export(settings)
    from tasks import celery  # reads the environment

    # Workers tell each other nothing that they need (mingle, gossip), and would wait a second for it at the start.
    program = celery.Worker(hostname=f"orcd-{os.getpid()}@{gethostname()}", without_mingle=True, without_gossip=True)
    program.start()
    exit_code: int = program.exitcode or 0
    return exit_code


def _export(settings: Settings) -> None:
    """Make ``settings`` those that this process and its children read from the environment."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]
    os.environ.update(to_environment(settings))


for command in (*job_commands.COMMANDS, *model_commands.COMMANDS):
    cli.add_command(command)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. (A closed output ends it inside of click: quietly, with 1.)"""
    try:
        return cli.main(list(arguments), prog_name="orcd", standalone_mode=False) or 0
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        terminal.report(InvalidRequest.code, error.format_message() + hint)
        return 2
    except OrcdError as error:
        terminal.report(error.code, error.message)
        return 2 if isinstance(error, InvalidRequest) else 1
    except (KeyboardInterrupt, click.Abort):
        terminal.report(Cancelled.code, "interrupted")
        return INTERRUPTED


def main() -> None:
    """The ``orcd`` command."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
