"""Chat templates are rendered, and long texts tokenised, in a child process that is killed when it takes too much.

Limits inside of one process cannot hold: a filter, a method or a regular expression that a template uses may run in C
for minutes, or ask for all memory, and meanwhile no other thread of the process gets the interpreter.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from orcd.errors import BY_CODE, InvalidRequest, OrcdError
from orcd.settings import inherited_environment
from worker.text import threads
from worker.text.chat_template import ChatTemplate
from worker.text.process import frames
from worker.text.process.frames import CPU_LIMIT_S, MEMORY_BYTES, WALL_FACTOR

ENVIRONMENT = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "1"}
"""One call at a time is answered, by one thread: threads and their heaps would only take address space."""


_BoundedCall = frames.Render | frames.Encode | frames.CheckGrammar


class LimitExceeded(InvalidRequest):
    """The call took more time, memory or bytes than it may."""


@dataclass(frozen=True, slots=True)
class VocabularyFiles:
    """A model's GGUF file, and a tokenizer.json to use instead of its own vocabulary, or "".

    ``digest`` is `worker.text.tokenizer.Tokenizer.digest` of what they held when they were loaded first: files that
    hold another vocabulary now are refused. Empty: any will do.
    """

    model: str
    tokenizer: str = ""
    digest: bytes = b""


class TextProcess:
    """The child, for one thread at a time; started by `start` or by the first call, and again after it has ended.

    ``template`` is None where nothing will be rendered, ``files`` where nothing will be tokenised: the vocabulary is
    loaded with the first text, which takes seconds and as much memory as it does in this process. A call that
    sends more than ``max_bytes``, or takes longer than ``wall_limit_s`` (default: several times the processor time in
    `frames.CPU_LIMIT_S`), raises `LimitExceeded`. `close` it, or use it in a with block.
    """

    def __init__(
        self,
        template: ChatTemplate | None,
        files: VocabularyFiles | None = None,
        *,
        max_bytes: int = frames.MAX_FRAME_BYTES,
        wall_limit_s: float | None = None,
    ) -> None:
        self._template = template
        self._files = files
        self._max_bytes = max_bytes
        self._wall_limit_s = wall_limit_s
        self._child: _Child | None = None
        self._is_killed = False

    def __enter__(self) -> TextProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        return self._child.process.pid if self._child else None

    def start(self) -> None:
        """Start the child without waiting for it, so that the first call finds it ready. Raises OSError."""
        if self._child is None and not self._is_killed:
            self._child = _Child(self._template)

    def kill(self) -> None:
        """End the child at once and for good, from any thread: calls raise `OrcdError`."""
        self._is_killed = True
        child = self._child
        if child is not None:
            child.process.kill()

    def close(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """`ChatTemplate.render`, in the child. Raises `InvalidRequest`, also `LimitExceeded`, or `OrcdError`."""
        call = frames.Render(messages, tools, add_generation_prompt, continue_final_message, variables)
        answer = self._call(call, "messages: the model's chat template refuses them: it")
        assert isinstance(answer, frames.Text)
        return answer.text

    def encode(
        self,
        text: str,
        *,
        add_special: bool,
        parse_special: bool,
        max_tokens: int | None,
        stand_ins: Mapping[int, str] | None = None,
    ) -> list[int]:
        """`Tokenizer.encode`, in the child. Raises `InvalidRequest`, also `LimitExceeded`, or `OrcdError`."""
        call = frames.Encode(text, add_special, parse_special, max_tokens, stand_ins)
        answer = self._call(call, "the prompt: encoding it")
        assert isinstance(answer, frames.Ids)
        return answer.ids

    def check_grammar(self, grammar: str) -> int | None:
        """Compile a grammar in the child; returns what `GrammarChecked` says.

        Raises `InvalidRequest`, also `LimitExceeded`, or `OrcdError`.
        """
        answer = self._call(frames.CheckGrammar(grammar), "the grammar of the answer: compiling it")
        assert isinstance(answer, frames.GrammarChecked)
        return answer.min_tokens

    def _call(self, call: _BoundedCall, doing: str) -> frames.Answer:
        """The answer to a call; ``doing`` is what an error about limits begins with."""
        try:
            frame = frames.encode(call)
        except (RecursionError, TypeError, ValueError):
            raise InvalidRequest("messages: values must be plain JSON, and not nested deeply") from None
        if len(frame) > self._max_bytes:
            raise LimitExceeded(f"{doing} takes more than {self._max_bytes} bytes")
        try:
            try:
                answer = self._answer(call, frame)
            except _Ended as ended:
                if ended.is_by_limit:
                    raise
                answer = self._answer(call, frame)  # somebody has killed it, perhaps before this call
        except TimeoutError:
            raise LimitExceeded(f"{doing} takes longer than {self._seconds(call):g} s") from None
        except _Ended as ended:
            raise ended.error(doing, CPU_LIMIT_S[type(call)]) from None
        except OSError as error:
            raise OrcdError(f"the process that encodes prompts cannot be started ({error.strerror})") from None
        if isinstance(answer, frames.Refused):
            raise BY_CODE.get(answer.code, OrcdError)(answer.message)
        return answer

    def _answer(self, call: _BoundedCall, frame: bytes) -> frames.Answer:
        """Raises TimeoutError or `_Ended`, and the child has then ended; OSError where there is none."""
        self.start()
        child = self._child
        if child is None or self._is_killed:
            raise _Ended(-signal.SIGKILL)
        try:
            child.wait_until_started()
            if not isinstance(call, frames.Render):
                assert self._files is not None, "whoever has no vocabulary encodes nothing"
                refused = child.prepare(self._files, for_grammars=isinstance(call, frames.CheckGrammar))
                if refused is not None:
                    return refused
            return child.answer(frame, self._seconds(call))
        except (TimeoutError, _Ended):
            self.close()
            raise

    def _seconds(self, call: _BoundedCall) -> float:
        return self._wall_limit_s or WALL_FACTOR * CPU_LIMIT_S[type(call)]


class _Ended(Exception):
    """The child has ended with this exit code, or had to be: None."""

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code

    @property
    def is_by_limit(self) -> bool:
        """Whether it was one of its own limits."""
        return self.code in (-signal.SIGXCPU, -signal.SIGABRT)

    def error(self, doing: str, cpu_limit_s: int) -> OrcdError:
        """What its caller is told."""
        if self.code == -signal.SIGXCPU:
            return LimitExceeded(f"{doing} takes longer than {cpu_limit_s} s")
        if self.code == -signal.SIGABRT:  # how the tokenizers library ends where an allocation fails
            return LimitExceeded(f"{doing} needs more than {MEMORY_BYTES >> 20} MiB of memory")
        return OrcdError(f"{doing} has twice ended the process that does it (exit code {self.code})")


class _Child:
    """One run of ``python -m worker.text.process``."""

    def __init__(self, template: ChatTemplate | None) -> None:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "worker.text.process", "--fd", str(theirs.fileno())],
                    env=inherited_environment() | ENVIRONMENT,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # what a library says there may quote the prompt
                )
        except BaseException:
            ours.close()
            raise
        # One that dies while nobody calls it is gone at once, and not only when somebody does.
        reaper = threading.Thread(target=self.process.wait, name="text process reaper", daemon=True)
        try:
            threads.start(reaper)
        except OSError:
            ours.close()
            self.process.kill()
            self.process.wait()
            raise
        self._connection = ours
        self._starting: frames.Start | None = frames.Start(None)
        if template is not None:
            self._starting = frames.Start(template.source, **template.special_tokens)
        self._prepared: set[type[frames.Call]] = set()

    def wait_until_started(self) -> None:
        """Raises TimeoutError or `_Ended`."""
        if self._starting is not None:
            start, self._starting = self._starting, None
            answer = self.answer(frames.encode(start), WALL_FACTOR * CPU_LIMIT_S[frames.Start])
            if not isinstance(answer, frames.Done):
                raise _Ended(None)

    def prepare(self, files: VocabularyFiles, *, for_grammars: bool) -> frames.Refused | None:
        """Have it load the vocabulary, once. Returns why that cannot be. Raises TimeoutError or `_Ended`."""
        calls: list[frames.Call] = [frames.LoadVocabulary(files.model, files.tokenizer, files.digest)]
        if for_grammars:
            calls.append(frames.PrepareGrammars())
        for call in calls:
            if type(call) not in self._prepared:
                answer = self.answer(frames.encode(call), WALL_FACTOR * CPU_LIMIT_S[type(call)])
                if isinstance(answer, frames.Refused):
                    return answer
                self._prepared.add(type(call))
        return None

    def answer(self, frame: bytes, limit_s: float) -> frames.Answer:
        """The child's answer to a call. Raises TimeoutError or `_Ended`."""
        deadline = time.monotonic() + limit_s
        try:
            self._connection.settimeout(limit_s)
            self._connection.sendall(frame)
            return frames.receive_answer(self._connection, deadline)
        except TimeoutError:
            raise
        except (OSError, EOFError, ValueError):
            raise _Ended(self.end()) from None

    def end(self) -> int:
        """End it, unless it has ended by itself, and return its exit code."""
        self._connection.close()
        self.process.kill()
        return self.process.wait()
