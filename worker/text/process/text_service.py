"""The child of a `TextProcess`: answers one call after the other, within limits that the kernel keeps."""

from __future__ import annotations

import math
import resource
import time
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING

from orcd.errors import InvalidRequest, ModelLoadFailed, OrcdError, places
from worker.text.chat_template import ChatTemplate
from worker.text.process import frames
from worker.text.process.frames import CPU_LIMIT_S, MEMORY_BYTES

if TYPE_CHECKING:
    from worker.text.grammar.grammar_compiler import GrammarCompiler
    from worker.text.tokenizer import Tokenizer


class TextService:
    """Renders and tokenises for whoever holds the other end of ``connection``.

    Processor time is limited by call and memory for good: beyond what the process needs by itself it gets
    `MEMORY_BYTES`. A call that exceeds its time ends the process (SIGXCPU), as does one whose memory runs out where
    that cannot be caught (SIGABRT).
    """

    def __init__(self, connection: socket) -> None:
        self._connection = connection
        self._template: ChatTemplate | None = None
        self._tokenizer: Tokenizer | None = None
        self._grammars: GrammarCompiler | None = None

    def run(self) -> None:
        """Answer calls until the other end is closed."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold prompts
        while True:
            try:
                call = frames.receive_call(self._connection)
            except (EOFError, OSError):
                return
            limit_s = math.ceil(time.process_time() + CPU_LIMIT_S[type(call)])
            resource.setrlimit(resource.RLIMIT_CPU, (limit_s, resource.RLIM_INFINITY))
            try:
                self._connection.sendall(frames.encode(self._answer(call)))
            except OSError:
                return
            del call  # while this process waits for the next one, nobody needs it

    def _answer(self, call: frames.Call) -> frames.Answer:
        try:
            match call:
                case frames.Start():
                    if call.template is not None:
                        self._template = ChatTemplate(call.template, bos_token=call.bos_token, eos_token=call.eos_token)
                    _limit_memory()
                case frames.LoadVocabulary():
                    self._load(call)
                case frames.Render():
                    return frames.Text(self._render(call))
                case frames.Encode():
                    return frames.Ids(self._encode(call))
                case frames.PrepareGrammars():
                    self._prepare_grammars()
                case frames.CheckGrammar():
                    assert self._grammars is not None, "grammars are prepared before the first one comes"
                    return frames.GrammarChecked(self._grammars.compile(call.grammar).min_tokens())
        except OrcdError as error:
            return frames.Refused(error.code, error.message)
        except MemoryError:
            return frames.Refused(InvalidRequest.code, f"the prompt needs more than {MEMORY_BYTES >> 20} MiB of memory")
        except Exception as error:  # its text may quote the prompt
            return frames.Refused(OrcdError.code, f"{type(error).__name__} in {', '.join(places(error)[-3:])}")
        return frames.Done()

    def _load(self, call: frames.LoadVocabulary) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # it maps the file
        # Most processes only render: they do without these, a quarter of what they would import.
        from worker.model.gguf import open_gguf
        from worker.text import tokenizer as tokenizers

        metadata = open_gguf(call.model).metadata
        tokenizer = tokenizers.of_model(metadata, call.tokenizer)
        if call.digest and tokenizer.digest != call.digest:
            raise ModelLoadFailed(f"{call.tokenizer or call.model}: has changed since the worker started")
        self._tokenizer = tokenizer
        del metadata
        _limit_memory()

    def _prepare_grammars(self) -> None:
        assert self._tokenizer is not None, "the vocabulary is loaded before"
        # Most requests have no grammar: who only tokenises does without llguidance.
        from worker.text.grammar.grammar_compiler import GrammarCompiler

        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        self._grammars = GrammarCompiler(self._tokenizer)
        _limit_memory()

    def _render(self, call: frames.Render) -> str:
        assert self._template is not None, "whoever has no template renders nothing"
        return self._template.render(
            call.messages,
            tools=call.tools,
            add_generation_prompt=call.add_generation_prompt,
            continue_final_message=call.continue_final_message,
            variables=call.variables,
        )

    def _encode(self, call: frames.Encode) -> list[int]:
        assert self._tokenizer is not None, "the vocabulary is loaded before the first text comes"
        return self._tokenizer.encode(
            call.text,
            add_special=call.add_special,
            parse_special=call.parse_special,
            max_tokens=call.max_tokens,
            stand_ins=call.stand_ins,
        )


def _limit_memory() -> None:
    """Let the process have `MEMORY_BYTES` more than it has now."""
    try:
        num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # not Linux
        return
    limit = num_pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
