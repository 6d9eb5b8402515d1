"""``python -m tasks``: the commands of ``orcd`` that run a worker or what belongs to one; ``orcd`` becomes it.

What a command needs is imported when it runs: NumPy and Celery take a while, and Flower may be missing.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from orcd.cli.command_line import SETTINGS, given, input_options, json_option, leave, prepare_standard_streams, run
from orcd.cli.terminal import write_json
from orcd.errors import InvalidRequest, ModelLoadFailed
from orcd.store.redis_address import RedisAddress
from worker.settings import Settings, from_environment


@click.group(no_args_is_help=False, context_settings=SETTINGS)
def cli() -> None:
    """Commands that run a worker or what belongs to one."""


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
    from tasks.demo.demo import Demo

    Demo(output, redis_url).run()


@cli.command()
@click.option("--model", metavar="M.gguf", help="GGUF file to serve; default: $ORCD_MODEL.")
@click.option("--tokenizer", metavar="FILE", help="A tokenizer.json to use instead of the GGUF's own vocabulary.")
@click.option("--chat-template", metavar="FILE", help="A Jinja chat template to use instead of the GGUF's own.")
@click.option("--device", metavar="DEVICE", help="cuda:0 (default), another GPU, or cpu.")
@click.option("--redis", "redis_url", metavar="URL", help="Redis to take jobs from; default: $ORCD_REDIS_URL.")
@click.option("--name", help="Model name that clients ask for; default: the file's name without .gguf.")
@click.option("--kv-cache-type", metavar="TYPE", help="q8: keys and values of 8 bits; default: f16.")
@click.option("--vram-fraction", type=float, metavar="F", help="Part of the GPU's free memory to use; default: 0.9.")
@click.option("--vram-bytes", type=int, metavar="N", help="Most GPU memory to use, in bytes.")
@click.option("--vram-check-s", type=int, metavar="N", help="Seconds between two checks of where that memory is.")
@click.option(
    "--drain-timeout", "drain_timeout_s", type=int, metavar="N", help="Seconds that jobs have when it is told to stop."
)
@click.option("--metrics-host", metavar="H", help="Address that metrics and health are served on; default: 127.0.0.1.")
@click.option("--metrics-port", type=int, metavar="N", help="Serve metrics and health on this port.")
@click.option("--metrics-compat", metavar="KIND", help="none: no metrics under vLLM's names; default: vllm.")
def worker(**flags: Any) -> int:
    """Serve one model on one device.

    Takes jobs from Redis until it is told to stop (Ctrl-C or SIGTERM): it then finishes what it can and gives the rest
    to other workers. A second Ctrl-C, or SIGQUIT, has it give all jobs back at once.

    \b
      orcd worker --model qwen2.5-0.5b-instruct-q4_k_m.gguf
      orcd worker --model tiny.gguf --device cpu --redis redis://:password@queue.example:6379/0

    Everything else is set by ORCD_ variables (docs/settings.md lists them). `celery -A tasks worker` with the same
    variables runs the same worker.
    """
    gc.disable()  # until the pool has started: what is imported and loaded until then stays
    settings = from_environment(**flags)
    if not settings.model:
        raise InvalidRequest("model: give --model M.gguf or set ORCD_MODEL")
    for file in filter(None, (settings.model, settings.tokenizer, settings.chat_template)):
        if not file.startswith("hf:") and not Path(file).is_file():
            raise ModelLoadFailed(f"{file}: is not a file")
    RedisAddress.parse(settings.redis_url)  # what is wrong is told before an engine runs
    for number in (signal.SIGTERM, signal.SIGINT):  # until Celery has handlers of its own
        signal.signal(number, leave)
    from tasks.dispatch.engine.engine_run import EngineRun, start_engine

    engine_run: EngineRun | None = None
    with suppress(OSError):  # whoever starts the next one reports it
        engine_run = start_engine(settings)  # loads the model while Celery is imported

    from tasks.app import create_worker_app
    from tasks.observe.node_name import NodeName

    node = NodeName(settings.model_name, settings.device)  # held until this process ends
    # Workers tell each other nothing that they need (mingle, gossip), and would wait a second for it at the start.
    program = create_worker_app(settings, engine_run).Worker(
        hostname=node.text, without_mingle=True, without_gossip=True
    )
    program.start()
    exit_code: int = program.exitcode or 0
    return exit_code


@cli.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--model-file", metavar="M.gguf", help="The model whose tokens are counted; default: $ORCD_MODEL.")
@click.option("--tokenizer", metavar="FILE", help="A tokenizer.json to use instead of the GGUF's own vocabulary.")
@click.option("--chat-template", metavar="FILE", help="A Jinja chat template to use instead of the GGUF's own.")
@click.option(
    "--context-length", type=int, metavar="N", help="Tokens that the worker allows; default: what the model does."
)
@input_options
@json_option
def plan(inputs: tuple[str, ...], model_file: str | None, as_json: bool, **options: Any) -> int:
    """Count the tokens of prompt files, and find the lines that would fail; no worker is needed.

    INPUT and the options that say how it becomes requests are those of orcd batch. Prints the lines that would fail
    (the first 20; with --json all), and then the sums. Exit code 1 if lines would fail.

    \b
      orcd plan requests.jsonl --model-file model.gguf
      orcd plan articles.csv --prompt "Summarise: {text}" --max-tokens 200 --model-file model.gguf --json
    """
    from orcd.cli.batch_commands import batch_options
    from tasks.batch_plan import BatchPlan, show

    files = {name: options.pop(name) for name in ("tokenizer", "chat_template", "context_length")}
    settings = from_environment(model=model_file, **files)
    if not settings.model:
        raise InvalidRequest("model-file: give --model-file M.gguf or set ORCD_MODEL")
    with BatchPlan(settings, batch_options(given(options))) as counted:
        return show(counted, inputs, as_json=as_json)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[FLOWER OPTION]...")
def flower(options: tuple[str, ...]) -> NoReturn:
    """Watch workers and jobs in a browser, with Flower.

    Reads the worker's ORCD_ variables, so it finds the same Redis; prompts and answers are not shown. All options are
    Flower's own, also as FLOWER_ variables. It asks for a password, which it makes up unless you give one, and changes
    nothing unless you say --read-only=false: then its buttons revoke and terminate jobs.

    \b
      orcd flower --port=5555 --basic-auth=me:secret
    """
    from tasks.flower_program import FlowerProgram

    _end_process(FlowerProgram(from_environment(), options).run())


def _end_process(exit_code: int) -> NoReturn:
    """Without waiting for threads, as Python does: Flower's may wait for a Redis that is away."""
    atexit._run_exitfuncs()  # Flower keeps its state in one
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


@cli.group(no_args_is_help=False)
def bench() -> None:
    """Measure throughput and latency."""


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    """The numbers that an option lists."""
    numbers = value.split(",")
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise click.BadParameter("must be numbers of at least 1, separated by commas", ctx, param)
    return [int(number) for number in numbers]


@bench.command("queue")
@click.argument("model", type=click.Path(path_type=Path), metavar="M.gguf")
@click.option("--device", metavar="DEVICE", help="cuda:0 (default), another GPU, or cpu.")
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=128, show_default=True, metavar="N")
@click.option("--output-tokens", type=click.IntRange(min=1), default=256, show_default=True, metavar="N")
@click.option(
    "--concurrency",
    callback=_numbers,
    default="1,16,64,256",
    show_default=True,
    metavar="N,...",
    help="Streams at once.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
def bench_queue(
    model: Path, device: str | None, prompt_tokens: int, output_tokens: int, concurrency: list[int], as_json: bool
) -> None:
    """Send the same load through a Redis and a worker that are started for it."""
    from tasks.local.bench import HEAD, QueueBench

    load = QueueBench(model, device or Settings().device, prompt_tokens, output_tokens)
    if not as_json:
        print(f"{model.name} behind the queue: {prompt_tokens} tokens in, {output_tokens} out\n{HEAD}", flush=True)
    for measurement in load.measure(concurrency):
        if as_json:
            write_json(measurement)
        else:
            print(measurement.row(), flush=True)


if __name__ == "__main__":
    prepare_standard_streams()
    sys.exit(run(cli, sys.argv[1:]))
