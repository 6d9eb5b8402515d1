"""Requests to token ids: chat template and tokenizer of the model that the worker serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orcd.errors import ContextLengthExceeded, InvalidRequest, ModelLoadFailed
from orcd.request import Request
from worker import contract
from worker.model.gguf import open_gguf
from worker.settings import Settings
from worker.text import tokenizer as tokenizers
from worker.text.chat_template import ChatTemplate
from worker.text.detokenizer import Detokenizer
from worker.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request as the engine takes it, and the way back from its ids to text."""

    ids: list[int]
    sampling: contract.Sampling
    detokenizer: Callable[[], Detokenizer]


class PromptEncoder:
    """Text <-> ids for one model. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | InvalidRequest) -> None:
        """``template`` is the error that a request with messages gets where there is none that can be used."""
        self._tokenizer = tokenizer
        self._template = template

    @property
    def template_problem(self) -> str | None:
        """Why requests with messages are refused; None where they are not."""
        return self._template.message if isinstance(self._template, InvalidRequest) else None

    @classmethod
    def load(cls, settings: Settings) -> PromptEncoder:
        """From the model's GGUF and, if the settings name them, a tokenizer.json and a chat template.

        Raises `ModelLoadFailed`, but not for a template in the GGUF: a model whose template is broken still completes
        prompts.
        """
        if not settings.model:
            raise ModelLoadFailed("no model is given; name a GGUF file with --model or ORCD_MODEL")
        metadata = open_gguf(settings.model).metadata
        if settings.tokenizer:
            tokenizer = tokenizers.from_tokenizer_json(settings.tokenizer, metadata)
        else:
            tokenizer = tokenizers.from_metadata(metadata)
        if settings.chat_template:
            return cls(tokenizer, ChatTemplate.from_file(settings.chat_template, tokenizer))
        return cls(tokenizer, _template_in(metadata, tokenizer))

    def encode(self, request: Request, ready: contract.Ready) -> Prompt:
        """Raises `InvalidRequest` naming the field, or `ContextLengthExceeded` with both lengths.

        A prompt of megabytes takes seconds. Other threads run meanwhile.
        """
        ids = self._token_ids(request, ready.max_sequence_tokens)
        if not ids:
            raise InvalidRequest("prompt: has no tokens; give some text")
        if len(ids) + (request.max_tokens or 1) > ready.max_sequence_tokens:
            wanted = f" and max_tokens is {request.max_tokens}" if request.max_tokens else ""
            raise ContextLengthExceeded(
                f"the prompt has {len(ids)} tokens{wanted}, but prompt and answer together may have "
                f"{ready.max_sequence_tokens}; shorten the prompt{' or lower max_tokens' if wanted else ''}"
            )
        for name, given in (("prompt_token_ids", ids), ("logit_bias", request.logit_bias)):
            if max(given, default=0) >= ready.vocab_size:
                raise InvalidRequest(f"{name}: ids must be below the model's vocabulary size {ready.vocab_size}")
        return Prompt(ids, self._sampling(request, ready), self._detokenizer_of(request, ids))

    def _token_ids(self, request: Request, max_tokens: int) -> list[int]:
        if request.prompt_token_ids is not None:
            return request.prompt_token_ids
        if request.prompt is not None:
            return self._tokenizer.encode(request.prompt, add_special=True, parse_special=True, max_tokens=max_tokens)
        if isinstance(self._template, InvalidRequest):
            raise InvalidRequest(self._template.message)
        # As in Hugging Face's apply_chat_template: the template itself writes BOS where the model wants one.
        text = self._template.render(request.messages or [])
        return self._tokenizer.encode(text, add_special=False, parse_special=True, max_tokens=max_tokens)

    def _sampling(self, request: Request, ready: contract.Ready) -> contract.Sampling:
        ends = frozenset() if request.ignore_eos else self._tokenizer.end_ids
        told = {name: getattr(request, name) for name in contract.Sampling.__struct_fields__}
        told["max_tokens"] = request.max_tokens or ready.max_sequence_tokens
        told["seed"] = request.seed or 0
        told["stop_token_ids"] = tuple(sorted(ends.union(request.stop_token_ids)))
        return contract.Sampling(**told)

    def _detokenizer_of(self, request: Request, ids: list[int]) -> Callable[[], Detokenizer]:
        return lambda: Detokenizer(
            self._tokenizer,
            request.stop,
            prompt_ids=ids,
            min_tokens=request.min_tokens,
            include_stop=request.include_stop_str_in_output,
            skip_special=request.skip_special_tokens,
        )


def _template_in(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate | InvalidRequest:
    """The GGUF's own template, or what is to be said to those who would need it."""
    advice = "send a prompt (orcd generate --raw), or start the worker with --chat-template FILE"
    try:
        template = ChatTemplate.from_metadata(metadata, tokenizer)
    except ModelLoadFailed as error:
        return InvalidRequest(f"messages: the model's {error.message}; {advice}")
    return template or InvalidRequest(f"messages: the model has no chat template; {advice}")
