"""GPT-OSS's channels: one answer is several messages, some of them reasoning.

::

    <|start|>assistant<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...<|return|>

A message begins with a header, which is not text: role, channel, recipient, content type. The recipient stands behind
the role or behind the channel; a message to ``functions.NAME`` is a call of that tool, and its text the arguments::

    <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>

Format: OpenAI's "harmony" response format.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from worker.text.special_tokens import harmony_texts
from worker.text.tokenizer import Tokenizer
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.answer_parts import AnswerParts, CallDelta

Channel = Literal["final", "analysis", "commentary"]

_RECIPIENT = re.compile(rb"to=functions\.(\S+)")
_OTHER_CHANNELS: dict[bytes, Channel] = {b"analysis": "analysis", b"commentary": "commentary"}


class Channels:
    """Follows the control tokens of a conversation, prompt and answer alike.

    ``channel`` is where text belongs at the moment, None in a header. Text outside of messages (a plain prompt), in a
    message without a channel, or in one of an unknown channel is ``final``: the answer. With tools in ``form`` messages
    to functions are calls; a call that the prompt has begun is not one of the answer's. If the answer ends with its
    first call, it ``has_ended`` with that.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], form: AnswerForm) -> None:
        ids = tokenizer.special_ids
        self._tokenizer = tokenizer
        self._channel_id, self._message_id = ids["<|channel|>"], ids["<|message|>"]
        self._end_ids = {ids["<|start|>"], ids["<|end|>"], *tokenizer.end_ids}
        self.border_ids = frozenset((*self._end_ids, self._channel_id, self._message_id))
        """Tokens with which a message or a header ends."""
        self._role = bytearray()  # of a header that has not reached <|channel|>
        self._name: bytearray | None = None  # of a header that has
        self._num_calls = 0
        self._is_call = self._has_arguments = False
        self._takes_calls = self._ends_with_call = False
        self.has_ended = False
        self.channel: Channel | None = "final"
        of_prompt = AnswerParts()
        for token_id in prompt_ids:
            self.advance(token_id, of_prompt)
        self._takes_calls = bool(form.tool_names)
        self._ends_with_call = form.ends_with_call

    @classmethod
    def of(cls, tokenizer: Tokenizer, prompt_ids: Sequence[int], form: AnswerForm) -> Channels | None:
        """None for a model without channels."""
        is_harmony = harmony_texts(tokenizer.special_ids.keys())
        return cls(tokenizer, prompt_ids, form) if is_harmony else None

    @property
    def awaits_channel(self) -> bool:
        """Whether a header has begun that has named no channel yet."""
        return self.channel is None and self._name is None

    def advance(self, token_id: int, parts: AnswerParts) -> None:
        """Take the next token; a call that begins with it, or has ended without arguments, is added to ``parts``."""
        if token_id in self._end_ids:
            self._end_call(parts)
            self.channel, self._name = None, None
            self._role.clear()
        elif token_id == self._channel_id:
            self._end_call(parts)
            self.channel, self._name = None, bytearray()
        elif token_id == self._message_id:
            self._end_call(parts)
            name = bytes(self._name or b"").strip().partition(b" ")[0]
            self.channel = _OTHER_CHANNELS.get(name, "final")
            self._begin_call(parts)
        elif self.channel is None:
            header = self._role if self._name is None else self._name
            header += b" " if self._tokenizer.is_special(token_id) else self._tokenizer.token_bytes(token_id)

    def add(self, text: str, parts: AnswerParts) -> None:
        """Add to ``parts`` what is next in the message that goes on."""
        if not text:
            return
        if self._is_call:
            self._has_arguments = True
            parts.calls.append(CallDelta(self._num_calls - 1, arguments=text))
        elif self.channel == "analysis":
            parts.analysis += text
        elif self.channel == "commentary":
            parts.commentary += text
        else:
            parts.answer += text

    def _begin_call(self, parts: AnswerParts) -> None:
        recipient = _RECIPIENT.search(self._role + b" " + (self._name or b""))
        if self._takes_calls and recipient:
            self._is_call, self._has_arguments = True, False
            parts.calls.append(CallDelta(self._num_calls, recipient[1].decode("utf-8", "replace")))
            self._num_calls += 1

    def _end_call(self, parts: AnswerParts) -> None:
        if self._is_call and not self._has_arguments:
            parts.calls.append(CallDelta(self._num_calls - 1, arguments="{}"))
        self.has_ended |= self._is_call and self._ends_with_call
        self._is_call = False
