"""What the Celery side knows of a small model: a vocabulary of bytes and two control tokens, and its limits."""

from __future__ import annotations

from unittest.mock import patch

from tasks.dispatch import prompt_encoder
from tasks.dispatch.prompt_encoder import PromptEncoder
from tests.worker.text.vocabularies import bpe_metadata
from worker import contract
from worker.text import tokenizer as tokenizers
from worker.text.chat_template import ChatTemplate

START_ID, END_ID = 257, 258
METADATA = bpe_metadata("Q Q", control=("<|im_start|>", "<|im_end|>"), eos_token_id=END_ID)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)
TOKENIZER = tokenizers.from_metadata(METADATA)
PATIENCE_S = 60.0
"""How long a template may take on a busy machine before its messages count as long."""
with patch.object(prompt_encoder, "SHORT_RENDER_S", PATIENCE_S):
    ENCODER = PromptEncoder(TOKENIZER, ChatTemplate(TEMPLATE))
READY = contract.Ready(
    model="bytes",
    architecture="qwen2",
    device="cpu",
    vocab_size=259,
    context_length=128,
    max_sequence_tokens=64,
    max_sequences=4,
    load_ms=12,
    memory_bytes=4096,
    pid=4321,
    fingerprint="0123456789abcdef-float32-cpu-1",
)
