"""Requests to token ids: chat template and tokenizer of the model that the worker serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import msgspec

from orcd.errors import ContextLengthExceeded, InvalidRequest, ModelLoadFailed
from orcd.request import NamedTool, Request, structured_output
from tasks.dispatch.engine.logprob_process import LogprobProcess
from tasks.dispatch.engine.token_spellings import TokenSpellings
from worker import contract
from worker.model.gguf import open_gguf
from worker.settings import Settings
from worker.text import tokenizer as tokenizers
from worker.text import vocabulary
from worker.text.bad_word_ids import bad_word_ids
from worker.text.chat import chat_prompt
from worker.text.chat.chat_prompt import Chat, ChatPrompt
from worker.text.chat.content_escape import ContentEscape
from worker.text.chat_template import ChatTemplate
from worker.text.detokenizer import ALL_TEXT, Detokenizer
from worker.text.grammar.grammar_text import grammar_text
from worker.text.process.checked_grammars import CheckedGrammars
from worker.text.process.text_process import LimitExceeded, TextProcess, VocabularyFiles
from worker.text.tokenizer import Tokenizer
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.required.answer_grammars import AnswerGrammars

SHORT_BYTES = 64 * 1024
"""Longer texts are long: tokenising so much takes 20 to 50 ms."""
SHORT_RENDER_S = 0.5
"""Messages that the chat template takes longer for count as long."""

Lane = Literal["prompts", "grammars"]
"""What takes long: a text that is to be rendered or tokenised, or a grammar that is to be checked."""


class TakesLong(Exception):
    """A request must be encoded by `PromptEncoder.encode_long`, in this lane."""

    def __init__(self, lane: Lane = "prompts") -> None:
        super().__init__(lane)
        self.lane: Lane = lane


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request as the engine takes it, and the way back from its ids to text, and to that of other tokens.

    ``grammar`` is that of the answers, "" where they are free.
    """

    ids: list[int]
    sampling: contract.Sampling
    detokenizer: Callable[[], Detokenizer]
    spellings: TokenSpellings
    grammar: str = ""


class Limits(Protocol):
    """What an engine allows; `worker.contract.Ready` says more."""

    @property
    def max_sequence_tokens(self) -> int:
        """Of a prompt and one answer together."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""


class PromptEncoder:
    """Text <-> ids for one model.

    Chat templates are rendered, long texts tokenised and grammars checked in child processes: one for short prompts,
    which `encode` waits for only moments, and one for each `Lane`, which is started with the first request that needs
    it. So one thread may be in `encode` and one for each lane in `encode_long`. `close` ends the processes.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | InvalidRequest,
        files: VocabularyFiles | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        """``template`` is the error that a request with messages gets where there is none that can be used.

        ``files`` are those that ``tokenizer`` is from; without them no long texts can be encoded.
        """
        self.warnings = warnings  # of the vocabulary
        self._tokenizer = tokenizer
        self._logprobs = LogprobProcess(tokenizer.pieces)
        self._spellings = TokenSpellings(tokenizer.pieces, self._logprobs)
        self.template_problem = template.message if isinstance(template, InvalidRequest) else None
        """Why requests with messages are refused; None where they are not."""
        usable = None if isinstance(template, InvalidRequest) else template
        self._form = usable.form if usable else None
        self._answer_form = AnswerForm.of(usable.source) if usable else ALL_TEXT
        self._grammars_of_answers = AnswerGrammars(self._answer_form, tokenizer)
        self._escape = ContentEscape(tokenizer.control_texts)
        self._short = TextProcess(usable, max_bytes=SHORT_BYTES, wall_limit_s=SHORT_RENDER_S)
        self._slow: dict[Lane, TextProcess] = {lane: TextProcess(usable, files) for lane in get_args(Lane)}
        self._grammars = CheckedGrammars()

    @classmethod
    def load(cls, settings: Settings) -> PromptEncoder:
        """From the model's GGUF and, if the settings name them, a tokenizer.json and a chat template.

        Raises `ModelLoadFailed`, but not for a template in the GGUF: a model whose template is broken still completes
        prompts.
        """
        if not settings.model:
            raise ModelLoadFailed("no model is given; name a GGUF file with --model or ORCD_MODEL")
        gguf = open_gguf(settings.model)
        metadata = gguf.metadata
        tokenizer = tokenizers.of_model(metadata, settings.tokenizer)
        files = VocabularyFiles(str(gguf.path), settings.tokenizer, tokenizer.digest)
        of_file = ChatTemplate.from_file(settings.chat_template, tokenizer) if settings.chat_template else None
        return cls(tokenizer, of_file or _template_in(metadata, tokenizer), files, vocabulary.warnings(metadata))

    def start(self) -> None:
        """Start the process for short prompts, if it will be needed, without waiting for it."""
        if self.template_problem is None:
            with suppress(OSError):  # whoever needs it tries again, and says so
                self._short.start()

    def encode(self, request: Request, ready: Limits) -> Prompt:
        """A short prompt, in less than a second. Raises `TakesLong`, or as `encode_long`."""
        ids = self._short_ids(request, ready.max_sequence_tokens)
        grammar = self._grammar_of(request, ids)
        try:
            min_tokens = self._grammars.known(grammar) if grammar else None
        except KeyError:
            raise TakesLong("grammars") from None
        return self._prompt(request, ready, ids, grammar, min_tokens)

    def encode_long(self, request: Request, ready: Limits, lane: Lane = "prompts") -> Prompt:
        """Any prompt, whatever the lane; this may take many seconds, in which other threads run.

        Raises `InvalidRequest` naming the field, `ContextLengthExceeded` with both lengths, or `OrcdError` after
        `interrupt`.
        """
        process = self._slow[lane]
        ids = self._long_ids(request, ready.max_sequence_tokens, process)
        grammar = self._grammar_of(request, ids)
        min_tokens = self._grammars.check(grammar, process) if grammar else None
        return self._prompt(request, ready, ids, grammar, min_tokens)

    def interrupt(self) -> None:
        """Have an `encode_long` in progress end at once; from any thread."""
        for process in self._slow.values():
            process.kill()

    def close(self) -> None:
        """End the processes."""
        for process in (self._short, *self._slow.values()):
            process.close()
        self._logprobs.close()

    def _short_ids(self, request: Request, max_tokens: int) -> list[int]:
        if request.prompt_token_ids is not None:
            return request.prompt_token_ids
        if request.prompt is not None:
            prompt = ChatPrompt(request.prompt, {})
        elif _is_long(request.messages):
            raise TakesLong
        else:
            try:
                prompt = self._rendered(request, self._short)
            except LimitExceeded:
                self.start()
                raise TakesLong from None
        if len(prompt.text) > SHORT_BYTES:
            raise TakesLong
        return self._tokenized(self._tokenizer, request, prompt, max_tokens)

    def _long_ids(self, request: Request, max_tokens: int, process: TextProcess) -> list[int]:
        if request.prompt_token_ids is not None:
            return request.prompt_token_ids
        has_text = request.prompt is not None
        prompt = ChatPrompt(request.prompt or "", {}) if has_text else self._rendered(request, process)
        tokenizer = process if len(prompt.text) > SHORT_BYTES else self._tokenizer
        return self._tokenized(tokenizer, request, prompt, max_tokens)

    def _rendered(self, request: Request, process: TextProcess) -> ChatPrompt:
        if self._form is None:
            raise InvalidRequest(self.template_problem or "")
        chat = Chat(
            request.messages or [],
            tools=request.tools,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            variables=request.chat_template_kwargs,
        )
        escape = self._escape if request.special_tokens_in_content == "escape" else None
        return chat_prompt.render(chat, self._form, process, escape)

    def _tokenized(
        self, tokenizer: Tokenizer | TextProcess, request: Request, prompt: ChatPrompt, max_tokens: int
    ) -> list[int]:
        return tokenizer.encode(
            prompt.text,
            # As in Hugging Face's apply_chat_template: the template itself writes BOS where the model wants one.
            add_special=request.prompt is not None,
            parse_special=True,
            max_tokens=max_tokens,
            stand_ins=prompt.stand_ins or None,
        )

    def _grammar_of(self, request: Request, ids: list[int]) -> str:
        if request.tool_choice != "auto":
            named = request.tool_choice.name if isinstance(request.tool_choice, NamedTool) else None
            tools = [tool for tool in request.tools or () if named in (None, tool["function"]["name"])]
            return self._grammars_of_answers.of_calls(tools, ids)
        output = structured_output(request)
        if output is None:
            return ""
        document = grammar_text(output.kind, output.value, output.whitespace_pattern)
        if request.messages is None:
            return document
        return self._grammars_of_answers.of_document(document, list(self._form_of(request).tool_names), ids)

    def _form_of(self, request: Request) -> AnswerForm:
        """What to look for in the answer. One that must be a document is text from its first token on."""
        form = self._answer_form.with_tools(request.tools or (), ends_with_call=not request.parallel_tool_calls)
        may_call = form.tool_names and self._grammars_of_answers.take_calls and request.structured_outputs is None
        is_document = structured_output(request) is not None and not may_call
        return ALL_TEXT if request.messages is None or is_document else form

    def _prompt(self, request: Request, ready: Limits, ids: list[int], grammar: str, min_tokens: int | None) -> Prompt:
        if not ids:
            raise InvalidRequest("prompt: has no tokens; give some text")
        if len(ids) + (request.max_tokens or 1) > ready.max_sequence_tokens:
            wanted = f" and max_tokens is {request.max_tokens}" if request.max_tokens else ""
            raise ContextLengthExceeded(
                f"the prompt has {len(ids)} tokens{wanted}, but prompt and answer together may have "
                f"{ready.max_sequence_tokens}; shorten the prompt{' or lower max_tokens' if wanted else ''}"
            )
        most = min(request.max_tokens or ready.max_sequence_tokens, ready.max_sequence_tokens - len(ids))
        if min_tokens is not None and min_tokens > most:
            raise InvalidRequest(
                f"max_tokens: {most} are too few for a document of the form asked for, which has at least {min_tokens}"
            )
        prompt = "the prompt's text" if request.prompt_token_ids is None else "prompt_token_ids"
        for name, given in ((prompt, ids), ("logit_bias", request.logit_bias)):
            if max(given, default=0) >= ready.vocab_size:
                raise InvalidRequest(f"{name}: ids must be below the model's vocabulary size {ready.vocab_size}")
        detokenizer = self._detokenizer_of(request, ids, self._form_of(request))
        return Prompt(ids, self._sampling(request, ready), detokenizer, self._spellings, grammar)

    def _sampling(self, request: Request, ready: Limits) -> contract.Sampling:
        ends = {id_ for id_ in self._tokenizer.end_ids if id_ < ready.vocab_size and not request.ignore_eos}
        told = {name: getattr(request, name) for name in contract.Sampling.__struct_fields__}
        told["max_tokens"] = request.max_tokens or ready.max_sequence_tokens
        told["seed"] = request.seed or 0
        told["bad_words"] = self._bad_words(request, ready)
        told["stop_token_ids"] = tuple(sorted(ends.union(request.stop_token_ids)))
        return contract.Sampling(**told)

    def _bad_words(self, request: Request, ready: Limits) -> tuple[tuple[int, ...], ...]:
        words = bad_word_ids(request.bad_words, self._tokenizer)
        if max(map(max, words), default=0) >= ready.vocab_size:
            raise InvalidRequest(f"bad_words: ids must be below the model's vocabulary size {ready.vocab_size}")
        return words

    def _detokenizer_of(self, request: Request, ids: list[int], form: AnswerForm) -> Callable[[], Detokenizer]:
        return lambda: Detokenizer(
            self._tokenizer,
            request.stop,
            prompt_ids=ids,
            min_tokens=request.min_tokens,
            include_stop=request.include_stop_str_in_output,
            skip_special=request.skip_special_tokens,
            form=form,
        )


def _is_long(messages: Any) -> bool:
    try:
        return len(msgspec.json.encode(messages)) > SHORT_BYTES
    except (RecursionError, TypeError, ValueError):
        return False  # whoever renders them says what is wrong


def _template_in(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate | InvalidRequest:
    """The GGUF's own template, or what is to be said to those who would need it."""
    advice = "send a prompt (orcd generate --raw), or start the worker with --chat-template FILE"
    try:
        template = ChatTemplate.from_metadata(metadata, tokenizer)
    except ModelLoadFailed as error:
        return InvalidRequest(f"messages: the model's {error.message}; {advice}")
    return template or InvalidRequest(f"messages: the model has no chat template; {advice}")
