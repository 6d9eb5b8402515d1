"""Measure the engine on a GPU: synthetic models of real shape, one table with the floors they must reach.

    python -m tests.bench.gpu [--models NAME,...] [--rows load,decode,prefill,requests] [--folder DIR]

The models (45 GB in all) are made first, each in a process of its own; those that are in the folder already are taken
from there. ``load`` starts an engine process and waits until it is ready, twice: the first start brings the file into
the page cache and compiles kernels, the second is measured. ``decode`` and ``prefill`` are runs of
``orcd bench engine``, and ``requests`` is `tests.bench.request_mixes`, in a table of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.make_model import MODELS
from worker import contract
from worker.contract import Fatal, Load, Ready

ROWS = ("load", "decode", "prefill", "requests")
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 256
PREFILL_STREAMS, PREFILL_TOKENS = 64, 2048


@dataclass(frozen=True, slots=True)
class Floors:
    """The least that is accepted; 0 or infinity: nothing is asked."""

    decode: float = 0.0  # tokens per second of one stream
    streams: float = 0.0  # tokens per second of 256 streams, end to end
    prefill: float = 0.0  # prompt tokens per second
    ready_s: float = float("inf")  # from the process's start
    load: float = 10.0  # GB of weights per second, from the page cache


FLOORS = {
    "qwen2.5-0.5b": Floors(decode=2000, streams=53_000, prefill=300_000, ready_s=4),
    "phi-3-mini-q4_k_m": Floors(decode=600, streams=10_000, prefill=50_000),
    "gpt-oss-20b": Floors(decode=500, streams=12_000, prefill=25_000, ready_s=8),
    "llama-3.1-8b": Floors(decode=330),
    "gemma-3-12b": Floors(decode=215),
    "qwen3-30b-a3b": Floors(decode=830),
}


def make_models(names: Sequence[str], folder: Path, layers: int | None) -> dict[str, Path]:
    """The files of the models; those that are missing are made, all at once."""
    paths = {name: folder / (f"{name}.gguf" if layers is None else f"{name}-{layers}-layers.gguf") for name in names}
    processes = {}
    for name, path in paths.items():
        if not path.exists():
            part = path.with_suffix(".part")
            options = [] if layers is None else [f"--layers={layers}"]
            command = [sys.executable, "-m", "tests.bench.make_model", name, str(part), *options]
            processes[name] = part, subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for name, (part, process) in processes.items():
        if process.wait():
            raise SystemExit(f"making {name} failed")
        part.rename(paths[name])
    return paths


def time_start(path: Path, device: str) -> dict[str, float]:
    """``ready_s``: seconds from the start of an engine process to Ready; ``load_gb_per_s``: weights while they load."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "worker", "--fd", str(theirs.fileno())]
    environment = os.environ | {"ORCD_MODEL": str(path), "ORCD_DEVICE": device}
    start = time.perf_counter()
    with ours:
        with theirs:
            process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
        begun = end = 0.0
        splitter = contract.FrameSplitter()
        while chunk := ours.recv(1 << 16):
            for event in map(contract.decode_event, splitter.feed(chunk)):
                match event:
                    case Fatal(code=code, message=message):
                        raise SystemExit(f"{code}: {message}")
                    case Load(num_bytes=0):
                        begun = time.perf_counter()
                    case Load(num_bytes=num_bytes):
                        end = time.perf_counter()
                    case Ready():
                        ready_s = time.perf_counter() - start
                        ours.sendall(contract.encode(contract.Shutdown()))
    process.wait()
    return {"ready_s": ready_s, "load_gb_per_s": num_bytes / 1e9 / (end - begun)}


def bench(path: Path, device: str, prompt_tokens: int, output_tokens: int, streams: str) -> list[dict[str, Any]]:
    """What ``orcd bench engine`` measures, a dictionary for each number of streams."""
    options = [f"--prompt-tokens={prompt_tokens}", f"--output-tokens={output_tokens}", f"--concurrency={streams}"]
    command = [sys.executable, "-m", "worker", "bench", "engine", str(path), f"--device={device}", "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)  # it has said why
    return [json.loads(line) for line in done.stdout.splitlines()]


def decode_rate(row: dict[str, Any]) -> float:
    """Tokens per second of each stream once it has its first."""
    return float((row["output_tokens"] - 1) / (row["total_s"] - row["ttft_p50_ms"] / 1000))


def measure(name: str, path: Path, arguments: argparse.Namespace) -> list[str]:
    """The cells of a model's line: what was measured, and after a slash its floor."""
    floors, device = FLOORS.get(name, Floors()), arguments.device
    cells = [name]
    if "load" in arguments.rows:
        time_start(path, device)
        load = time_start(path, device)
        cells += [_cell(load["load_gb_per_s"], floors.load, 1), _cell(load["ready_s"], floors.ready_s, 1)]
    if "decode" in arguments.rows:
        for row in bench(path, device, arguments.prompt_tokens, arguments.output_tokens, arguments.concurrency):
            if row["concurrency"] == 1:
                cells.append(_cell(decode_rate(row), floors.decode))
            else:
                cells.append(_cell(row["output_tokens_per_s"], floors.streams if row["concurrency"] == 256 else 0))
    if "prefill" in arguments.rows:
        (row,) = bench(path, device, arguments.prefill_tokens, 1, str(PREFILL_STREAMS))
        cells.append(_cell(row["prompt_tokens_per_s"], floors.prefill))
    return cells


def measure_requests(paths: dict[str, Path], device: str) -> list[list[str]]:
    """What `tests.bench.request_mixes` measures, a line a case and a column a model, under a heading."""
    lines: dict[str, list[str]] = {}
    for path in paths.values():
        command = [sys.executable, "-m", "tests.bench.request_mixes", str(path), "--device", device, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        for row in map(json.loads, done.stdout.splitlines()):
            line = lines.setdefault(row["case"], [f"{row['case']}, {row['unit']}"])
            line.append(_cell(row["value"], 0.0, 0 if row["unit"] == "tok/s" else 2))
    return [["requests", *paths], *lines.values()]


def heading(arguments: argparse.Namespace) -> list[str]:
    """The names of the columns."""
    cells = ["measured / floor"]
    if "load" in arguments.rows:
        cells += ["load, GB/s", "start to ready, s"]
    if "decode" in arguments.rows:
        cells += [
            "decode, 1 stream, tok/s" if streams == "1" else f"{streams} streams, tok/s"
            for streams in arguments.concurrency.split(",")
        ]
    if "prefill" in arguments.rows:
        cells.append(f"prefill, {PREFILL_STREAMS} x {arguments.prefill_tokens}, tok/s")
    return cells


def _cell(value: float, floor: float, digits: int = 0) -> str:
    return f"{value:,.{digits}f}" + (f" / {floor:,.0f}" if 0 < floor < float("inf") else "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What is measured; exits with 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=_names_of(MODELS), default=list(FLOORS), metavar="NAME,...")
    parser.add_argument("--rows", type=_names_of(ROWS), default=list(ROWS), metavar="load,decode,prefill,requests")
    parser.add_argument("--folder", type=Path, help="where the models are or are put; default: a temporary folder")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--concurrency", default="1,16,64,256", metavar="N,...", help="of the decode rows")
    parser.add_argument("--prompt-tokens", type=int, default=PROMPT_TOKENS, help="of the decode rows")
    parser.add_argument("--output-tokens", type=int, default=OUTPUT_TOKENS, help="of the decode rows")
    parser.add_argument("--prefill-tokens", type=int, default=PREFILL_TOKENS)
    parser.add_argument("--layers", type=int, help="fewer layers than the real models have")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    arguments = read_arguments(argv)
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        paths = make_models(arguments.models, folder, arguments.layers)
        names = heading(arguments)
        print(f"{_line(names)}\n{_line(['---'] * len(names))}", flush=True)
        for name, path in paths.items():
            print(_line(measure(name, path, arguments)), flush=True)
        if "requests" in arguments.rows:
            names, *lines = measure_requests(paths, arguments.device)
            print("\n".join(["", _line(names), _line(["---"] * len(names)), *map(_line, lines)]))
    return 0


def _names_of(known: Sequence[str] | dict[str, Any]) -> Any:
    def names(text: str) -> list[str]:
        if unknown := [name for name in text.split(",") if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return text.split(",")

    return names


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
