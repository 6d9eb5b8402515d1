"""What the engine refuses: the checks an `Add` passes before it becomes sequences."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from orcd.errors import ContextLengthExceeded, InvalidRequest, VramOom
from worker.contract import Add, Sampling

MAX_LOGPROBS = 20
_SEEDS = 1 << 64


def validate_add(add: Add, *, vocab_size: int, context_length: int, cache_tokens: int) -> None:
    """Raise `InvalidRequest` naming the field, `ContextLengthExceeded` or `VramOom` (never fits the KV cache)."""
    if not add.prompt_ids:
        raise InvalidRequest("prompt_ids is empty; send at least one token")
    if not add.choices or len({choice.index for choice in add.choices}) != len(add.choices):
        raise InvalidRequest("choices must be one or more different indices")
    _check_ids("prompt_ids", add.prompt_ids, vocab_size)
    for choice in add.choices:
        _check_ids("output_ids", choice.output_ids, vocab_size)
    _check_sampling(add.sampling, vocab_size)
    num_prompt = len(add.prompt_ids)
    if num_prompt >= context_length:
        raise ContextLengthExceeded(
            f"the prompt has {num_prompt} tokens and the context {context_length}; at least one must be left for output"
        )
    if num_prompt >= cache_tokens:
        raise VramOom(
            f"the prompt has {num_prompt} tokens and this worker's KV cache holds {cache_tokens}; "
            "shorten it or give the worker more kv_cache_bytes"
        )


def _check_ids(field: str, ids: Collection[int], vocab_size: int) -> None:
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        raise InvalidRequest(f"{field} must be token ids from 0 to {vocab_size - 1}")


def _check_sampling(sampling: Sampling, vocab_size: int) -> None:
    _check_ids("stop_token_ids", sampling.stop_token_ids, vocab_size)
    _check_ids("logit_bias", sampling.logit_bias, vocab_size)
    _check_range("logit_bias", sampling.logit_bias.values(), -100, 100)
    _check_range("max_tokens", [sampling.max_tokens], 1, math.inf)
    _check_range("temperature", [sampling.temperature], 0, 2)
    _check_range("top_p", [sampling.top_p], 0, 1)
    _check_range("top_k", [sampling.top_k], 0, 2**31 - 1)
    _check_range("min_p", [sampling.min_p], 0, 1)
    _check_range("presence_penalty", [sampling.presence_penalty], -2, 2)
    _check_range("frequency_penalty", [sampling.frequency_penalty], -2, 2)
    _check_range("seed", [sampling.seed], 0, _SEEDS - 1)
    _check_range("min_tokens", [sampling.min_tokens], 0, math.inf)
    _check_range("logprobs", [sampling.logprobs or 0], 0, MAX_LOGPROBS)
    _check_range("repetition_penalty", [sampling.repetition_penalty], 0.01, 10)  # it divides logits


def _check_range(field: str, values: Iterable[float], least: float, most: float) -> None:
    for value in values:
        if not least <= value <= most:  # NaN is in no range
            bounds = f"at least {least}" if math.isinf(most) else f"from {least} to {most}"
            raise InvalidRequest(f"{field} must be {bounds}")
