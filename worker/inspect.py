"""``python -m worker inspect``: what a model file holds, what it needs, and whether it can run here."""

from __future__ import annotations

import argparse
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kernels.device import open_device
from kernels.formats import FORMATS
from worker.errors import ModelLoadFailed
from worker.model.adapters import assemble_model
from worker.model.config import ModelConfig, read_config
from worker.model.gguf import GGUFFile, open_gguf
from worker.model.weights import Weights
from worker.text.tokenizer import from_metadata

CUDA_CACHE_ITEM_BYTES = 2  # float16
TOKENS_PER_K = 1024


class TensorType(msgspec.Struct, frozen=True):
    """How much of a file is stored in one format, and in which tensors (``*`` stands for the layer's number)."""

    type: str
    count: int
    bytes: int
    tensors: dict[str, int]


class Report(msgspec.Struct, frozen=True):
    """What `inspect_gguf` finds; None where the file does not say or cannot be understood."""

    path: str
    name: str | None
    architecture: str | None
    parameters: int
    tensor_types: list[TensorType]
    num_layers: int | None
    context_length: int | None
    vocab_size: int | None
    tokenizer: str | None
    chat_template: bool
    vram_weights_bytes: int
    vram_kv_bytes_per_1k_tokens: int | None
    supported: bool
    problems: list[str]


def inspect_gguf(gguf: GGUFFile) -> Report:
    """Reads the header and small tensors only; what stands in the way of running the model is in ``problems``."""
    config = None
    problems = []
    try:
        config = read_config(gguf)
        device = open_device("cpu")
        assemble_model(config, Weights(gguf, device), device)
    except ModelLoadFailed as error:
        problems.append(error.message.removeprefix(f"{gguf.path}: "))
    try:
        from_metadata(gguf.metadata)
    except ModelLoadFailed as error:
        problems.append(error.message)
    tensors = gguf.tensors.values()
    return Report(
        path=str(gguf.path),
        name=_text(gguf, "general.name"),
        architecture=_text(gguf, "general.architecture"),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        tensor_types=_tensor_types(gguf),
        num_layers=config.num_layers if config else None,
        context_length=config.context_length if config else None,
        vocab_size=config.vocab_size if config else None,
        tokenizer=_tokenizer(gguf),
        chat_template="tokenizer.chat_template" in gguf.metadata,
        vram_weights_bytes=sum(tensor.num_bytes for tensor in tensors),
        vram_kv_bytes_per_1k_tokens=_kv_bytes_per_1k_tokens(config) if config else None,
        supported=not problems,
        problems=problems,
    )


def _kv_bytes_per_1k_tokens(config: ModelConfig) -> int:
    num_elements = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return num_elements * CUDA_CACHE_ITEM_BYTES * TOKENS_PER_K


def _tensor_types(gguf: GGUFFile) -> list[TensorType]:
    names: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    num_bytes: dict[str, int] = defaultdict(int)
    for tensor in gguf.tensors.values():
        names[tensor.format.name][re.sub(r"^blk\.\d+\.", "blk.*.", tensor.name)] += 1
        num_bytes[tensor.format.name] += tensor.num_bytes
    return [
        TensorType(type_, sum(names[type_].values()), num_bytes[type_], dict(names[type_]))
        for type_ in sorted(names, key=lambda type_: -num_bytes[type_])
    ]


def _text(gguf: GGUFFile, key: str) -> str | None:
    value = gguf.metadata.get(key)
    return value if isinstance(value, str) else None


def _tokenizer(gguf: GGUFFile) -> str | None:
    parts = [_text(gguf, "tokenizer.ggml.model"), _text(gguf, "tokenizer.ggml.pre")]
    return " / ".join(part for part in parts if part) or None


def format_report(report: Report) -> str:
    """The report for a person to read."""
    lines = [
        report.path,
        f"  architecture    {report.architecture or 'not said'}{f' ({report.name})' if report.name else ''}",
        f"  parameters      {report.parameters:,} in {_size(report.vram_weights_bytes)}",
        f"  layers          {_number(report.num_layers)}",
        f"  context         {_number(report.context_length)} tokens",
        f"  vocabulary      {_number(report.vocab_size)} tokens, {report.tokenizer or 'no tokenizer'}",
        f"  chat template   {'yes' if report.chat_template else 'no'}",
        "  tensor types",
    ]
    for type_ in report.tensor_types:
        unsupported = "" if type_.type in FORMATS else "  (not supported)"
        lines.append(f"    {type_.type:<6} {type_.count:>5} with {_size(type_.bytes)}{unsupported}")
        lines += [f"           {name}{f' x {count}' if count > 1 else ''}" for name, count in type_.tensors.items()]
    lines.append(f"  VRAM            {_size(report.vram_weights_bytes)} for weights")
    if report.vram_kv_bytes_per_1k_tokens is not None:
        lines.append(f"                  {_size(report.vram_kv_bytes_per_1k_tokens)} for KV per 1,024 tokens (float16)")
    lines.append(f"  supported       {'yes' if report.supported else 'no'}")
    lines += [f"    {problem}" for problem in report.problems]
    return "\n".join(lines)


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} bytes"


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def main(argv: Sequence[str]) -> int:
    """Run the verb; returns the exit code. Raises `ModelLoadFailed` for what is no GGUF file at all."""
    parser = argparse.ArgumentParser(prog="orcd inspect", description="What a GGUF file holds and needs.")
    parser.add_argument("model", type=Path, help="GGUF file (the first part of a split one)")
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    arguments = parser.parse_args(argv)
    report = inspect_gguf(open_gguf(arguments.model))
    print(msgspec.json.encode(report).decode() if arguments.json else format_report(report))
    return 0
