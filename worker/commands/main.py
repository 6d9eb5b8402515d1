"""``python -m worker VERB``, which people call as ``orcd VERB``: the command line of everything in this package.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. An error is one line on standard error,
``orcd: CODE: what to do``, with a code of `orcd.errors`. The commands import what they need when they run: NumPy and
the ops take a while, and nobody who asks for help should wait for them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import click

from orcd.errors import NOT_UTF_8, Cancelled, InvalidRequest, OrcdError, printable
from worker.settings import from_environment

INTERRUPTED = 130

_file = click.Path(path_type=Path)
_model_argument = click.argument("model", type=_file, metavar="M.gguf")
_device_option = click.option("--device", metavar="DEVICE", help="cuda:0 (default), another GPU, or cpu.")
_kv_cache_type_option = click.option(
    "--kv-cache-type", metavar="TYPE", help="q8: keys and values of 8 bits; default: f16."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    """The numbers that an option lists."""
    parts = value.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise click.BadParameter("must be numbers of at least 1, separated by commas", ctx, param)
    return [int(part) for part in parts]


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Work with a model file, or measure the engine, without a queue."""


@cli.command(hidden=True)
@click.option("--model", metavar="M.gguf")
@_device_option
def doctor(model: str | None, device: str | None) -> None:
    """Check the device, the kernels' cache and the model: a JSON object a line, for orcd doctor."""
    from worker.commands.doctor import checks
    from worker.commands.jsonl_answers import write_json

    for check in checks(from_environment(model=model, device=device)):
        write_json(check)


@cli.command()
@_model_argument
@click.option("--device", metavar="DEVICE", help="Also plan a worker's memory on cuda:N, GPU or no GPU, or on cpu.")
@_kv_cache_type_option
@click.option("--tokenizer", metavar="FILE", default="", help="The tokenizer.json that a worker would be given.")
@_json_option
def inspect(model: Path, device: str | None, kv_cache_type: str | None, tokenizer: str, as_json: bool) -> None:
    """Describe a model file: architecture, tensors, tokenizer, memory."""
    from worker.commands.inspect import format_report, inspect_model
    from worker.commands.jsonl_answers import write_json

    settings = None
    if device is not None or kv_cache_type is not None:
        settings = from_environment(model=str(model), device=device, kv_cache_type=kv_cache_type)
    report = inspect_model(model, settings, tokenizer)
    if as_json:
        write_json(report)
    else:
        print(*map(printable, format_report(report).split("\n")), sep="\n")


@cli.command()
@_model_argument
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
    from worker.commands.jsonl_answers import answer_lines, write_json
    from worker.commands.tokenize import TokenizeCommand, TokenizeRequest

    command = TokenizeCommand(model)
    if text is None:
        answer_lines(sys.stdin.buffer, TokenizeRequest, command.answer)
    else:
        write_json(command.answer(TokenizeRequest(text)))


@cli.command()
@click.argument("template", type=_file, metavar="M.gguf|TEMPLATE.jinja")
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
    from worker.commands.jsonl_answers import answer_lines
    from worker.commands.render import RenderCommand, RenderRequest

    with closing(RenderCommand(template)) as command:
        if messages is None:
            answer_lines(sys.stdin.buffer, RenderRequest, command.answer)
        else:
            sys.stdout.write(command.answer(RenderRequest.from_messages(messages.read()))["text"])


@cli.command()
@_model_argument
@click.option("--ids", type=_file, required=True, metavar="FILE.json", help="A list of lists of token ids.")
@click.option(
    "--out", type=_file, required=True, metavar="FILE.npz", help="Gets logits_0, logits_1, ...: [len, vocab]."
)
@_device_option
@_kv_cache_type_option
def logits(model: Path, ids: Path, out: Path, device: str | None, kv_cache_type: str | None) -> None:
    """Write the logits of every position of some token sequences."""
    from worker.commands.logits import write_logits

    write_logits(from_environment(model=str(model), device=device, kv_cache_type=kv_cache_type), ids, out)


@cli.group(no_args_is_help=False)
def bench() -> None:
    """Measure throughput and latency."""


@bench.command("engine")
@_model_argument
@_device_option
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
@_kv_cache_type_option
@_json_option
def bench_engine(
    model: Path,
    device: str | None,
    prompt_tokens: int,
    output_tokens: int,
    concurrency: list[int],
    kv_cache_type: str | None,
    as_json: bool,
) -> None:
    """Drive the engine directly, in one process and with no queue."""
    from worker.commands.bench import Load, format_head, format_row, measure_all
    from worker.commands.jsonl_answers import write_json

    settings = from_environment(model=str(model), device=device, kv_cache_type=kv_cache_type)
    for number, measurement in enumerate(measure_all(settings, Load(prompt_tokens, output_tokens), concurrency)):
        if as_json:
            write_json(measurement)
            continue
        if not number:
            print(format_head(measurement))
        print(format_row(measurement), flush=True)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    A closed output ends it inside of click: quietly, with 1.
    """
    try:
        return cli.main(list(arguments), prog_name="orcd", standalone_mode=False) or 0
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        _report(InvalidRequest.code, error.format_message() + hint)
        return 2
    except OrcdError as error:
        _report(error.code, error.message)
        return 2 if isinstance(error, InvalidRequest) else 1
    except OSError as error:  # a file or standard output that cannot be written
        _report(InvalidRequest.code, f"{error.filename or 'output'}: {error.strerror}")
        return 1
    except UnicodeEncodeError:
        _report(InvalidRequest.code, NOT_UTF_8)
        return 2
    except (KeyboardInterrupt, click.Abort):
        _report(Cancelled.code, "interrupted")
        return INTERRUPTED


def _report(code: str, message: str) -> None:
    print(f"orcd: {code}: {printable(message)}", file=sys.stderr)
