"""The commands about a model file: inspect, tokenize, render, logits, bench.

Those that load a model run ``python -m worker``: the Celery side never does.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import click

from tasks import offline, terminal
from worker.errors import InvalidRequest
from worker.settings import Settings

file = click.Path(path_type=Path)
model_argument = click.argument("model", type=file, metavar="M.gguf")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
device_option = click.option("--device", metavar="DEVICE", help="cuda:0 (default), another GPU, or cpu.")


@click.command()
@model_argument
@click.option("--device", metavar="cuda:N", help="Also plan a worker's memory there, GPU or no GPU.")
@json_option
def inspect(model: Path, **options: Any) -> int:
    """Describe a model file: architecture, tensors, tokenizer, memory."""
    return _run_verb("inspect", str(model), **options)


@click.command()
@model_argument
@click.option("--ids", type=file, required=True, metavar="FILE.json", help="A list of lists of token ids.")
@click.option("--out", type=file, required=True, metavar="FILE.npz", help="Gets logits_0, logits_1, ...: [len, vocab].")
@device_option
def logits(model: Path, **options: Any) -> int:
    """Write the logits of every position of some token sequences."""
    return _run_verb("logits", str(model), **options)


@click.group(no_args_is_help=False)
def bench() -> None:
    """Measure throughput and latency."""


def _load_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What both benchmarks can be told about the load."""
    number = click.IntRange(min=1)
    for option in (
        json_option,
        click.option(
            "--concurrency", default="1,16,64,256", show_default=True, metavar="N,...", help="Streams at once."
        ),
        click.option("--output-tokens", type=number, default=256, show_default=True, metavar="N"),
        click.option("--prompt-tokens", type=number, default=128, show_default=True, metavar="N"),
        device_option,
        model_argument,
    ):
        command = option(command)
    return command


@bench.command("engine")
@_load_options
def bench_engine(model: Path, **options: Any) -> int:
    """Drive the engine directly, in one process and with no queue."""
    return _run_verb("bench", str(model), **options)


@bench.command("queue")
@_load_options
def bench_queue(
    model: Path, device: str | None, prompt_tokens: int, output_tokens: int, concurrency: str, as_json: bool
) -> None:
    """Send the same load through a Redis and a worker that are started for it."""
    from tasks.bench import HEAD, QueueBench  # NumPy and asyncio Redis are slow to import

    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", concurrency):
        raise InvalidRequest("concurrency: must be numbers of at least 1, separated by commas")
    load = QueueBench(model, device or Settings().device, prompt_tokens, output_tokens)
    if not as_json:
        print(f"{model.name} behind the queue: {prompt_tokens} tokens in, {output_tokens} out\n{HEAD}", flush=True)
    for measurement in load.measure([int(number) for number in concurrency.split(",")]):
        if as_json:
            terminal.write_json(measurement)
        else:
            print(measurement.row(), flush=True)


def _run_verb(verb: str, model: str, *, as_json: bool = False, **options: Any) -> int:
    """Run a verb of the engine process and return its exit code."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]
    command = [sys.executable, "-P", "-m", "worker", verb, model, *arguments, *(["--json"] if as_json else [])]
    return subprocess.run(command, check=False).returncode


@click.command()
@model_argument
@click.argument("text", required=False)
@click.option("--jsonl", is_flag=True, help="Read objects {text, add_special?, parse_special?} from standard input.")
def tokenize(model: Path, text: str | None, jsonl: bool) -> None:
    """Turn text into token ids and back.

    Prints {"ids": [...], "text": the ids decoded}; with --jsonl one such line, or {"error": ...}, for each line of
    standard input.

    \b
      orcd tokenize M.gguf "Hello, world"
      echo '{"text": "<|im_end|>", "parse_special": true}' | orcd tokenize M.gguf --jsonl
    """
    if jsonl == (text is not None):
        raise InvalidRequest("text: give TEXT or --jsonl, and not both")
    answer = partial(offline.tokenise, offline.load_tokenizer(model))
    if text is not None:
        terminal.write_json(answer(offline.Tokenise(text)))
        return
    _answer_lines(sys.stdin.buffer, offline.Tokenise, answer)


@click.command()
@click.argument("template", type=file, metavar="M.gguf|TEMPLATE.jinja")
@click.argument("messages", type=click.File("rb"), required=False, metavar="[MESSAGES.json]")
@click.option("--jsonl", is_flag=True, help="Read objects {messages, tools?, add_generation_prompt?, variables?}.")
def render(template: Path, messages: BinaryIO | None, jsonl: bool) -> None:
    """Print the prompt that a chat template makes of messages.

    MESSAGES.json is a list of messages, - standard input. With --jsonl, {"text": ...} or {"error": ...} for each line
    of standard input.

    \b
      echo '[{"role": "user", "content": "Hello"}]' | orcd render M.gguf -
    """
    if jsonl == (messages is not None):
        raise InvalidRequest("messages: give MESSAGES.json or --jsonl, and not both")
    answer = partial(offline.render, offline.load_template(template))
    if messages is None:
        _answer_lines(sys.stdin.buffer, offline.Render, answer)
        return
    sys.stdout.write(answer(offline.read_messages(messages.read()))["text"])


def _answer_lines(lines: Iterable[bytes], kind: type[offline.Kind], answer: Callable[[offline.Kind], Any]) -> None:
    for line in offline.answer_lines(lines, kind, answer):
        terminal.write_line(line)


COMMANDS = (inspect, tokenize, render, logits, bench)
