"""``orcd inspect``: what a model file holds, what it needs, and whether it can run here."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from pathlib import Path

import msgspec

from kernels.cache_format import FLOAT16, Q8
from kernels.devices.open import open_device
from kernels.weights.formats import FORMATS
from orcd.errors import ModelLoadFailed
from worker.commands.ram_plan import RamPlan, plan_ram
from worker.commands.vram_plan import VramPlan, plan_vram, refusals
from worker.model.gguf import GGUFFile, open_gguf
from worker.model.kv_cache import bytes_per_block, bytes_per_state
from worker.model.registry import assemble_model, read_model_config
from worker.model.weights import Weights
from worker.settings import Settings
from worker.text.chat_template import ChatTemplate
from worker.text.tokenizer import Tokenizer, of_model
from worker.text.vocabulary import warnings

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
    chat_template_problem: str | None
    vram_weights_bytes: int
    vram_kv_bytes_per_1k_tokens: int | None
    supported: bool
    problems: list[str]
    warnings: list[str]
    state_bytes_per_sequence: int = 0
    kv_q8_bytes_per_1k_tokens: int | None = None
    vram_plan: VramPlan | None = None
    ram_plan: RamPlan | None = None


def inspect_model(model: Path, settings: Settings | None, tokenizer_json: str = "") -> Report:
    """The report on a GGUF file; with ``settings`` also the plan of a worker's memory on their device.

    Without, a model that only the CPU runs has a warning.

    ``tokenizer_json`` is the path of the tokenizer that a worker would have in place of the file's own.
    Raises `ModelLoadFailed` for what is no GGUF file at all.
    """
    gguf = open_gguf(model)
    report = inspect_gguf(gguf, tokenizer_json)
    if not report.supported:
        return report
    if settings is None:
        return msgspec.structs.replace(report, warnings=report.warnings + refusals(gguf))
    if settings.device == "cpu":
        return msgspec.structs.replace(report, ram_plan=plan_ram(gguf, settings))
    try:
        plan = plan_vram(gguf, settings)
    except ModelLoadFailed as error:  # of what the CPU could run
        problem = error.message.removeprefix(f"{gguf.path}: ")
        return msgspec.structs.replace(report, supported=False, problems=[problem])
    return msgspec.structs.replace(report, vram_plan=plan)


def inspect_gguf(gguf: GGUFFile, tokenizer_json: str = "") -> Report:
    """Reads the header and small tensors only; what stands in the way of running the model is in ``problems``."""
    config = None
    problems = []
    try:
        config = read_model_config(gguf)
        device = open_device("cpu")
        assemble_model(config, Weights(gguf, device), device)
    except ModelLoadFailed as error:
        problems.append(error.message.removeprefix(f"{gguf.path}: "))
    template_problem = None
    try:
        tokenizer = of_model(gguf.metadata, tokenizer_json)
    except ModelLoadFailed as error:
        problems.append(error.message)
    else:
        template_problem = _chat_template_problem(gguf, tokenizer)
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
        tokenizer=tokenizer_json or _tokenizer(gguf),
        chat_template="tokenizer.chat_template" in gguf.metadata,
        chat_template_problem=template_problem,
        vram_weights_bytes=sum(tensor.num_bytes for tensor in tensors),
        vram_kv_bytes_per_1k_tokens=bytes_per_block(config, FLOAT16, TOKENS_PER_K) if config else None,
        kv_q8_bytes_per_1k_tokens=bytes_per_block(config, Q8, TOKENS_PER_K) if config else None,
        state_bytes_per_sequence=bytes_per_state(config) if config else 0,
        supported=not problems,
        problems=problems,
        warnings=warnings(gguf.metadata),
    )


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


def _chat_template_problem(gguf: GGUFFile, tokenizer: Tokenizer) -> str | None:
    """Why the model's chat template cannot be used; the model still completes prompts."""
    try:
        ChatTemplate.from_metadata(gguf.metadata, tokenizer)
    except ModelLoadFailed as error:
        return f"{error.message}; start a worker with --chat-template FILE"
    return None


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
        f"  chat template   {report.chat_template_problem or ('yes' if report.chat_template else 'no')}",
        "  tensor types",
    ]
    for type_ in report.tensor_types:
        unsupported = "" if type_.type in FORMATS else "  (not supported)"
        lines.append(f"    {type_.type:<6} {type_.count:>5} with {_size(type_.bytes)}{unsupported}")
        lines += [f"           {name}{f' x {count}' if count > 1 else ''}" for name, count in type_.tensors.items()]
    lines.append(f"  VRAM            {_size(report.vram_weights_bytes)} for weights")
    for num_bytes, kind in ((report.vram_kv_bytes_per_1k_tokens, "float16"), (report.kv_q8_bytes_per_1k_tokens, "q8")):
        if num_bytes is not None:
            lines.append(f"                  {_size(num_bytes)} for KV per 1,024 tokens ({kind})")
    if report.state_bytes_per_sequence:
        lines.append(
            f"                  {_size(report.state_bytes_per_sequence)} for the state of a sequence (float32)"
        )
    if report.vram_plan is not None:
        lines += _vram_lines(report.vram_plan)
    if report.ram_plan is not None:
        lines += _ram_lines(report.ram_plan)
    lines.append(f"  supported       {'yes' if report.supported else 'no'}")
    lines += [f"    {problem}" for problem in report.problems]
    lines += [f"  warning         {warning}" for warning in report.warnings]
    return "\n".join(lines)


def _vram_lines(plan: VramPlan) -> list[str]:
    """The plan, a line for each use."""
    states = {f"states in {plan.state_slots:,} slots": plan.states_bytes} if plan.state_slots else {}
    uses = {
        "weights": plan.weights_bytes,
        "copies of weights in float16, for many tokens": plan.weight_copies_bytes,
        f"KV cache of {plan.kv_cache_tokens:,} tokens ({plan.kv_cache_type})": plan.kv_cache_bytes,
        **states,
        "activations and scratch": plan.scratch_bytes,
        "step buffers": plan.step_buffers_bytes,
        "graphs": plan.graphs_bytes,
        "CUDA itself": plan.cuda_context_bytes,
        "in all": plan.total_bytes,
    }
    lines = [f"  on {plan.device}".ljust(18) + plan.device_name]
    lines += _use_lines(uses, plan.available_bytes, "it fits" if plan.fits else "INSUFFICIENT_VRAM")
    if plan.note:
        lines.append(f"    {plan.note}")
    contexts, label = plan.one_kernel_contexts, "one sequence"
    if contexts:
        others = ", ".join(f"{most:,} of {count}" for count, most in contexts.items() if count > 1)
        label = "few sequences" if others else label
        limit = f"{contexts[1]:,} tokens of context" + (f" ({others})" if others else "")
        path = f"all layers in one kernel up to {limit}, then one by one"
    else:
        path = f"layers one by one, not all in one kernel: {plan.one_kernel_obstacle}"
    return [*lines, f"  {label:16}{path}"]


def _ram_lines(plan: RamPlan) -> list[str]:
    """The plan, a line for each use."""
    states = {f"states in {plan.state_slots:,} slots": plan.states_bytes} if plan.state_slots else {}
    uses = {
        "weights, mapped from the file": plan.weights_bytes,
        f"KV cache of {plan.kv_cache_tokens:,} tokens ({plan.kv_cache_type})": plan.kv_cache_bytes,
        **states,
        "expanded weights": plan.dequant_cache_bytes,
        "activations, about": plan.activations_bytes,
        "processes, about": plan.processes_bytes,
        "in all, about": plan.total_bytes,
    }
    names = ["ORCD_MAX_SEQUENCES", *(["ORCD_STATE_CACHE_BYTES"] if states else [])]
    too_large = f"it does not fit: lower {', '.join(names)} or ORCD_KV_CACHE_BYTES"
    return ["  on cpu", *_use_lines(uses, plan.available_bytes, "it fits" if plan.fits else too_large)]


def _use_lines(uses: dict[str, int], available_bytes: int | None, fit: str) -> list[str]:
    """A line for each use of memory, and one that says of what there is whether the plan ``fit``s."""
    lines = [f"    {num_bytes / 2**20:10,.0f} MiB {use}" for use, num_bytes in uses.items()]
    if available_bytes is not None:
        lines.append(f"    {available_bytes / 2**20:10,.0f} MiB available: {fit}")
    return lines


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} bytes"


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
