"""``python -m worker logits``: logits of every position of some token ids, for comparison with other programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kernels.step import Step
from worker.errors import InvalidRequest
from worker.loading import open_settings_device
from worker.model.adapters import Model, load_model
from worker.model.gguf import open_gguf
from worker.settings import from_environment

BLOCK_TOKENS = 16
CHUNK_TOKENS = 512


def compute_logits(model: Model, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Logits [len(token_ids), vocab] of one sequence, fed in chunks through a cache of its own."""
    num_tokens = len(token_ids)
    num_blocks = -(-num_tokens // BLOCK_TOKENS)
    cache = model.allocate_cache(num_blocks, BLOCK_TOKENS)
    ids = np.array(token_ids, np.int32)
    logits = np.empty((num_tokens, model.config.vocab_size), np.float32)
    for start in range(0, num_tokens, CHUNK_TOKENS):
        end = min(start + CHUNK_TOKENS, num_tokens)
        positions = np.arange(start, end, dtype=np.int32)
        step = Step(
            token_ids=ids[start:end],
            positions=positions,
            slots=positions,
            sequence_rows=np.zeros_like(positions),
            query_starts=np.array([0, end - start], np.int32),
            context_lengths=np.array([end], np.int32),
            sequence_lengths=np.array([num_tokens], np.int32),
            block_tables=np.arange(num_blocks, dtype=np.int32)[None],
            logit_rows=positions - start,
        )
        logits[start:end] = model.forward(step, cache)
    return logits


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
    model = load_model(gguf, device, lambda _done, _total: None)
    for number, ids in enumerate(prompts):
        _check_ids(arguments.ids, number, ids, model)
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


def _check_ids(path: Path, number: int, ids: list[int], model: Model) -> None:
    vocab_size, context_length = model.config.vocab_size, model.config.context_length
    if any(isinstance(token_id, bool) or not isinstance(token_id, int) for token_id in ids):
        raise InvalidRequest(f"--ids {path}: list {number} holds something that is no whole number")
    if not all(0 <= token_id < vocab_size for token_id in ids):
        raise InvalidRequest(f"--ids {path}: list {number} holds an id outside the vocabulary of {vocab_size}")
    if len(ids) > context_length:
        raise InvalidRequest(f"--ids {path}: list {number} has {len(ids)} ids; the context holds {context_length}")
