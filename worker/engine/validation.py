"""What the engine refuses: the checks an `Add` passes before it becomes sequences; and the answers where one fails."""

from __future__ import annotations

import struct
from collections.abc import Sequence as Series

import numpy as np

from kernels.errors import OutOfDeviceMemory
from orcd.errors import ContextLengthExceeded, InvalidRequest, OrcdError, VramOom, places
from orcd.sampling import MAX_PROMPT_LOGPROBS, check
from worker.contract import Add, Choice, Sampling, TokenOutput
from worker.engine.cache.prefix_cache import pack_ids
from worker.engine.logits.edit_rows import MAX_BIASES
from worker.engine.sequence import Sequence


def validate_add(add: Add, *, vocab_size: int, context_length: int, cache_tokens: int) -> bytes:
    """Raise `InvalidRequest` naming the field, `ContextLengthExceeded` or `VramOom` (never fits the KV cache).

    Returns the ids of the prompt, packed.
    """
    if not add.prompt_ids:
        raise InvalidRequest("prompt_ids is empty; send at least one token")
    if not add.choices or len({choice.index for choice in add.choices}) != len(add.choices):
        raise InvalidRequest("choices must be one or more different indices")
    packed_ids = _check_ids("prompt_ids", add.prompt_ids, vocab_size)
    for choice in add.choices:
        _check_ids("output_ids", choice.output_ids, vocab_size)
    _check_sampling(add.sampling, vocab_size)
    num_prompt = len(add.prompt_ids)
    num_reported = 0 if add.sampling.prompt_logprobs is None else num_prompt * (1 + add.sampling.prompt_logprobs)
    if num_reported > MAX_PROMPT_LOGPROBS:
        raise InvalidRequest(
            f"prompt_logprobs: for the {num_prompt} tokens of this prompt and their alternatives {num_reported} log"
            f" probabilities would be reported, at most {MAX_PROMPT_LOGPROBS} are; ask for fewer, or shorten the prompt"
        )
    if num_prompt >= context_length:
        raise ContextLengthExceeded(
            f"the prompt has {num_prompt} tokens and the context {context_length}; at least one must be left for output"
        )
    if num_prompt >= cache_tokens:
        raise VramOom(
            f"the prompt has {num_prompt} tokens and this worker's KV cache holds {cache_tokens}; "
            "shorten it or give the worker more kv_cache_bytes"
        )
    return packed_ids


def refusal(add: Add, error: OrcdError) -> list[TokenOutput]:
    """The answer to a request that cannot run: an error output for each choice."""
    return [error_output(add.request_id, choice.index, error) for choice in add.choices or (Choice(0),)]


def error_output(request_id: str, choice: int, error: OrcdError) -> TokenOutput:
    """The last output of a choice that ends with ``error``."""
    return TokenOutput(request_id, choice, (), "error", error_code=error.code, error_message=error.message)


def step_error(error: Exception) -> OrcdError:
    """An exception of the model as an error of the request; other exceptions' texts may hold what users wrote."""
    if isinstance(error, OrcdError):
        return error
    if isinstance(error, MemoryError | OutOfDeviceMemory):
        return VramOom("the device ran out of memory on this request; shorten it or lower step_tokens")
    return OrcdError(f"the model failed on this request: {type(error).__name__} at {places(error)[-1]}")


def last_output(sequence: Sequence) -> TokenOutput:
    """The last output of a choice that has ended without another token."""
    return TokenOutput(sequence.request_id, sequence.choice, (), sequence.finish_reason, usage=sequence.usage)


def _check_ids(field: str, ids: Series[int], vocab_size: int) -> bytes:
    if not ids:  # asked first, as it mostly is
        return b""
    try:
        packed_ids = pack_ids(ids)
    except struct.error:  # of more than 31 bits
        packed_ids = b""
    if packed_ids and np.maximum.reduce(np.frombuffer(packed_ids, np.uint32)) < vocab_size:
        return packed_ids
    raise InvalidRequest(f"{field} must be token ids from 0 to {vocab_size - 1}")


def _check_sampling(sampling: Sampling, vocab_size: int) -> None:
    check(sampling)  # what `ENGINE_LIMITS` names is checked here
    if not 0 <= sampling.seed < 2**64:
        raise InvalidRequest(f"seed must be from 0 to {2**64 - 1}")
    _check_ids("stop_token_ids", sampling.stop_token_ids, vocab_size)
    _check_ids("logit_bias", tuple(sampling.logit_bias), vocab_size)
    if not all(sampling.bad_words):
        raise InvalidRequest("bad_words: a word must be at least one token id")
    for word in sampling.bad_words:
        _check_ids("bad_words", word, vocab_size)
    num_single = sum(len(word) == 1 for word in sampling.bad_words)
    if len(sampling.stop_token_ids) + len(sampling.logit_bias) + num_single > MAX_BIASES:
        raise InvalidRequest(f"stop_token_ids, logit_bias and bad_words together must be at most {MAX_BIASES}")
    if len({word[0] for word in sampling.bad_words if len(word) == 1}) == vocab_size:
        raise InvalidRequest("bad_words leave no token that could be drawn")
