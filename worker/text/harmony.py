"""GPT-OSS's channels: one answer is several messages, some of them reasoning.

::

    <|start|>assistant<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...<|return|>

A message begins with a header, which is not text: role, channel, recipient, content type. Format: OpenAI's "harmony"
response format.
"""

from __future__ import annotations

from typing import Literal

from worker.text.special_tokens import harmony_texts
from worker.text.tokenizer import Tokenizer

Channel = Literal["final", "analysis", "commentary"]

_OTHER_CHANNELS: dict[bytes, Channel] = {b"analysis": "analysis", b"commentary": "commentary"}


class Channels:
    """Follows the control tokens of a conversation, prompt and answer alike.

    ``channel`` is where text belongs at the moment, None in a header. Text outside of messages (a plain prompt), in a
    message without a channel, or in one of an unknown channel is ``final``: the answer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.special_ids
        self._tokenizer = tokenizer
        self._channel_id, self._message_id = ids["<|channel|>"], ids["<|message|>"]
        self._border_ids = {ids["<|start|>"], ids["<|end|>"], *tokenizer.end_ids}
        self._name: bytearray | None = None  # of a header that has reached <|channel|>
        self.channel: Channel | None = "final"

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Channels | None:
        """None for a model without channels."""
        return cls(tokenizer) if harmony_texts(tokenizer.special_ids.keys()) else None

    def advance(self, token_id: int) -> bool:
        """Take the next token; True if it ends the message or header that went on before it."""
        if token_id in self._border_ids:
            self.channel, self._name = None, None
        elif token_id == self._channel_id:
            self.channel, self._name = None, bytearray()
        elif token_id == self._message_id:
            name = bytes(self._name or b"").strip().partition(b" ")[0]
            self.channel = _OTHER_CHANNELS.get(name, "final")
        else:
            if self.channel is None and self._name is not None and not self._tokenizer.is_special(token_id):
                self._name += self._tokenizer.token_bytes(token_id)
            return False
        return True
