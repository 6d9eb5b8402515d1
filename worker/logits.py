"""``python -m worker logits``: logits of every position of some token ids, for comparison with other programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.planned import PlannedDevice
from kernels.step import Step, dry_step
from worker.errors import InvalidRequest
from worker.loading import device_errors, open_settings_device
from worker.model.adapters import Model, load_model
from worker.model.config import ModelConfig, read_config
from worker.model.gguf import open_gguf
from worker.settings import from_environment
from worker.vram import reserve_for

BLOCK_TOKENS = 16
CHUNK_TOKENS = 512


def compute_logits(model: Model, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Logits [len(token_ids), vocab] of one sequence, fed in chunks through a cache of its own."""
    device: Any = model.device
    is_cuda = isinstance(device, PlannedDevice)
    if is_cuda:
        device.kv_cache.reset()
    cache = model.allocate_cache(_num_blocks(len(token_ids)), BLOCK_TOKENS)
    logits = np.empty((len(token_ids), model.config.vocab_size), np.float32)
    for start in range(0, len(token_ids), CHUNK_TOKENS):
        step = _build_step(token_ids, start)
        rows = logits[start : start + step.token_ids.size]
        rows[:] = (
            device.download(model.forward(_upload(device, step), cache)) if is_cuda else model.forward(step, cache)
        )
    return logits


def _build_step(token_ids: Sequence[int], start: int) -> Step:
    """The chunk that begins at ``start``; block ids and slots are those of a cache that the sequence has for itself."""
    end = min(start + CHUNK_TOKENS, len(token_ids))
    positions = np.arange(start, end, dtype=np.int32)
    return Step(
        token_ids=np.array(token_ids[start:end], np.int32),
        positions=positions,
        slots=positions,
        sequence_rows=np.zeros_like(positions),
        query_starts=np.array([0, end - start], np.int32),
        context_lengths=np.array([end], np.int32),
        sequence_lengths=np.array([len(token_ids)], np.int32),
        block_tables=np.arange(_num_blocks(len(token_ids)), dtype=np.int32)[None],
        logit_rows=positions - start,
    )


def _num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_TOKENS)


def _upload(device: Any, step: Step) -> Step:
    """The step's arrays on the device, where those of the one before were."""
    device.step_buffers.reset()
    return Step(**{name: device.upload(device.step_buffers, getattr(step, name)) for name in Step.__slots__})


def _lay_out(model: Model, lengths: Collection[int]) -> None:
    """Do on a device without memory what `compute_logits` does for prompts of these lengths."""
    device: Any = model.device
    num_blocks = _num_blocks(max(lengths, default=1))
    cache = model.allocate_cache(num_blocks, BLOCK_TOKENS)
    chunks = {min(length, CHUNK_TOKENS) for length in lengths} | {length % CHUNK_TOKENS for length in lengths}
    for chunk in chunks - {0}:
        step = dry_step(chunk, 1, chunk, num_blocks)
        device.step_buffers.reset()
        for name in Step.__slots__:
            device.empty(getattr(step, name).shape, np.int32)
        model.forward(step, cache)


def main(argv: Sequence[str]) -> int:
    """Run the verb; returns the exit code. Raises `worker.errors.OrcdError` for files that cannot be used."""
    parser = argparse.ArgumentParser(prog="orcd logits", description=__doc__)
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("--ids", required=True, type=Path, help="JSON file: a list of lists of token ids")
    parser.add_argument("--out", required=True, type=Path, help="NPZ file to write: logits_0, logits_1, ...")
    parser.add_argument("--device", help="cuda:N or cpu")
    arguments = parser.parse_args(argv)
    prompts = _read_prompts(arguments.ids)
    settings = from_environment(model=arguments.model, device=arguments.device)
    gguf = open_gguf(arguments.model)
    device = open_settings_device(settings)
    config = read_config(gguf)
    for number, ids in enumerate(prompts):
        _check_ids(arguments.ids, number, ids, config)
    with device_errors(settings):
        reserve_for(gguf, device, lambda model: _lay_out(model, {len(ids) for ids in prompts}))
        model = load_model(gguf, device, lambda _done, _total: None)
        results = {f"logits_{number}": compute_logits(model, ids) for number, ids in enumerate(prompts)}
    with arguments.out.open("wb") as file:  # a name without .npz stays as it is
        np.savez(file, **results)  # type: ignore[arg-type]
    return 0


def _read_prompts(path: Path) -> list[list[int]]:
    try:
        prompts = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not valid JSON"
        raise InvalidRequest(f"--ids {path}: cannot be read ({reason})") from None
    if not isinstance(prompts, list) or not all(isinstance(ids, list) and ids for ids in prompts):
        raise InvalidRequest(f"--ids {path}: must be a list of non-empty lists of token ids")
    return prompts


def _check_ids(path: Path, number: int, ids: list[int], config: ModelConfig) -> None:
    vocab_size, context_length = config.vocab_size, config.context_length
    if any(isinstance(token_id, bool) or not isinstance(token_id, int) for token_id in ids):
        raise InvalidRequest(f"--ids {path}: list {number} holds something that is no whole number")
    if not all(0 <= token_id < vocab_size for token_id in ids):
        raise InvalidRequest(f"--ids {path}: list {number} holds an id outside the vocabulary of {vocab_size}")
    if len(ids) > context_length:
        raise InvalidRequest(f"--ids {path}: list {number} has {len(ids)} ids; the context holds {context_length}")
