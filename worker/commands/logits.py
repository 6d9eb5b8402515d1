"""``orcd logits``: the logits of every position of some token ids, for comparison with other programs."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kernels.batch import Array, StateRows, Step
from kernels.devices.dry_run import DryRunDevice
from kernels.devices.protocol import GpuDevice, is_gpu
from kernels.dry_step import dry_step
from kernels.runtime.device_array import DeviceArray
from orcd.errors import InvalidRequest
from worker.load import device_errors, open_configured_device
from worker.memory_plan import reserve_for
from worker.model.config import ModelConfig
from worker.model.gguf import open_gguf
from worker.model.registry import Model, load_model, read_model_config
from worker.settings import Settings

BLOCK_TOKENS = 16
CHUNK_TOKENS = 512


def write_logits(settings: Settings, ids: Path, out: Path) -> None:
    """Write ``logits_0``, ``logits_1`` ... [len, vocab] float32 of the JSON file ``ids`` to the NPZ file ``out``.

    Raises `orcd.errors.OrcdError` for files that cannot be used.
    """
    prompts = _read_prompts(ids)
    if out.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):  # before minutes of work
        raise InvalidRequest(f"--out {out}: cannot be written")
    gguf = open_gguf(settings.model)
    opened = open_configured_device(settings)
    config = read_model_config(gguf)
    for number, prompt in enumerate(prompts):
        _check_ids(ids, number, prompt, config)
    with device_errors(settings):
        reserve_for(gguf, opened, lambda dry_model: run_dry(dry_model, {len(prompt) for prompt in prompts}))
        loaded = load_model(gguf, opened, lambda _done, _total: None)
        results = {f"logits_{number}": compute_logits(loaded, prompt) for number, prompt in enumerate(prompts)}
    with out.open("wb") as file:  # a name without .npz stays as it is
        np.savez(file, **results)  # type: ignore[arg-type]


def compute_logits(model: Model, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Logits [len(token_ids), vocab] of one sequence, fed in chunks through a cache of its own."""
    device = model.device
    if is_gpu(device):
        device.kv_cache.reset()
    has_states = model.bytes_per_state > 0
    cache = model.allocate_cache(_num_blocks(len(token_ids)), BLOCK_TOKENS, num_states=int(has_states))
    logits = np.empty((len(token_ids), model.config.vocab_size), np.float32)
    for start in range(0, len(token_ids), CHUNK_TOKENS):
        step = _build_step(token_ids, start, has_states)
        rows = logits[start : start + step.token_ids.size]
        if is_gpu(device):
            on_device = model.forward(_upload(device, step), cache)
            assert isinstance(on_device, DeviceArray)
            rows[:] = device.download(on_device)
        else:
            computed = model.forward(step, cache)
            assert isinstance(computed, np.ndarray)
            rows[:] = computed
    return logits


def _build_step(token_ids: Sequence[int], start: int, has_states: bool) -> Step[NDArray[np.int32]]:
    """The chunk that begins at ``start``; block ids, KV slots and state slot are of a cache for this sequence alone."""
    state = np.zeros(1, np.int32)
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
        states=StateRows(state, state if start else state - 1) if has_states else None,
    )


def _num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_TOKENS)


def _upload(device: GpuDevice, step: Step[NDArray[np.int32]]) -> Step[DeviceArray]:
    """The step's arrays on the device, where those of the one before were."""
    device.step_buffers.reset()
    arrays = {name: device.upload(device.step_buffers, array) for name, array in step.arrays().items()}
    states = None
    if step.states is not None:
        states = StateRows(*(device.upload(device.step_buffers, array) for array in _state_arrays(step)))
    return Step(**arrays, states=states, prefixes=None, has_short_chunks=True, has_long_context=False, greedy=None)


def _state_arrays(step: Step[Array]) -> list[Array]:
    return [step.states.slots, step.states.sources] if step.states else []


def run_dry(model: Model, lengths: Collection[int]) -> None:
    """Do on a device without memory what `compute_logits` does for prompts of these lengths."""
    device = model.device
    assert isinstance(device, DryRunDevice)
    num_blocks = _num_blocks(max(lengths, default=1))
    has_states = model.bytes_per_state > 0
    cache = model.allocate_cache(num_blocks, BLOCK_TOKENS, num_states=int(has_states))
    chunks = {min(length, CHUNK_TOKENS) for length in lengths} | {length % CHUNK_TOKENS for length in lengths}
    for chunk in chunks - {0}:
        step = dry_step(chunk, 1, chunk, num_blocks, has_states=has_states)
        device.step_buffers.reset()
        for array in (*step.arrays().values(), *_state_arrays(step)):
            device.empty(array.shape, np.int32)
        model.forward(step, cache)


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
