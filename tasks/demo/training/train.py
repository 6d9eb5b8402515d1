"""Train the demo model: ``python -m tasks.demo.training.train OUT_DIR`` writes tokenizer.json and model.npz there.

Needs PyTorch and tokenizers. Uses CUDA where there is one; the same seed, device type and number of threads give
the same model.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch  # type: ignore[import-not-found,unused-ignore]
import torch.nn.functional as F  # type: ignore[import-not-found,unused-ignore] # noqa: N812
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from tasks.demo.training.conversations import Conversation, ConversationSource, Haiku, Turn, read_corpus
from tasks.demo.training.network import Shape, final_hidden, logits, new_parameters

VOCAB_SIZE = 2048
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PEAK_LEARNING_RATE = 2e-3
DROPOUT = 0.1
IGNORED = -100  # cross_entropy's label for positions without a target


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE vocabulary split as Qwen2 splits; the special tokens have the last ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # A word begins a line, follows a space or stands in a list: show each text in both of the first two places.
    tokenizer.train_from_iterator([text for line in texts for text in (line, f" {line}")], trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


class Encoder:
    """Conversations to ids and labels; only what the assistant says is a target."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """``ids`` and, shifted by one, ``labels`` of a conversation in ChatML, or of plain text and its haiku."""
        parts: list[tuple[str, bool]] = []
        if conversation.system is not None:
            parts.append((f"<|im_start|>system\n{conversation.system}<|im_end|>\n", False))
        for turn in conversation.turns:
            if conversation.chat:
                parts.append((f"<|im_start|>user\n{turn.request}<|im_end|>\n<|im_start|>assistant\n", False))
                parts.append((f"{turn.haiku}<|im_end|>\n", True))
            else:
                parts += [(turn.request, False), (f"\n{turn.haiku}<|im_end|>\n", True)]
        parts.append(("<|endoftext|>", True))
        ids: list[int] = []
        labels: list[int] = []
        for text, is_target in parts:
            part = self.tokenizer.encode(text).ids
            ids += part
            labels += part if is_target else [IGNORED] * len(part)
        return ids, [*labels[1:], IGNORED]

    def batches(self, source: ConversationSource, size: int, device: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches of ``size`` conversations of about one length, so that little is padding."""
        while True:
            pool = sorted((source.conversation() for _ in range(16 * size)), key=lambda item: len(self.encode(item)[0]))
            batches = [pool[start : start + size] for start in range(0, len(pool), size)]
            source.random.shuffle(batches)
            for conversations in batches:
                yield self.batch(conversations, device)

    def batch(self, conversations: list[Conversation], device: str) -> tuple[Tensor, Tensor]:
        """``ids`` and ``labels``, both ``[len(conversations), longest]`` int64, padded on the right."""
        rows = [self.encode(conversation) for conversation in conversations]
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full((len(rows), longest), IGNORED)
        for row, (row_ids, row_labels) in enumerate(rows):
            ids[row, : len(row_ids)] = torch.tensor(row_ids)
            labels[row, : len(row_labels)] = torch.tensor(row_labels)
        return ids.to(device), labels.to(device)


def loss_of(parameters: dict[str, Tensor], shape: Shape, batch: tuple[Tensor, Tensor], dropout: float) -> Tensor:
    """Mean cross-entropy over the targets, in nats a token."""
    ids, labels = batch
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        hidden = final_hidden(parameters, shape, ids, dropout)
        targets = labels != IGNORED
        predicted = logits(parameters, hidden[targets])
    return F.cross_entropy(predicted.float(), labels[targets])


def plain_requests(haiku: list[Haiku]) -> list[Conversation]:
    """Each haiku as the answer to the plainest request, for measuring a loss."""
    return [Conversation([Turn(f"Write a haiku about {entry.subject}", entry.haiku)]) for entry in haiku]


def learning_rate(step: int, num_steps: int) -> float:
    """Linear warm-up over the first 3 %, then a cosine down to a fiftieth of the peak."""
    warm_up = 0.03 * num_steps
    if step < warm_up:
        return PEAK_LEARNING_RATE * (step + 1) / warm_up
    progress = (step - warm_up) / (num_steps - warm_up)
    return PEAK_LEARNING_RATE * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


def updates(
    parameters: dict[str, Tensor], shape: Shape, batches: Iterator[tuple[Tensor, Tensor]], num_steps: int
) -> Iterator[float]:
    """Train in place with AdamW; yields each step's loss."""
    matrices = [tensor for tensor in parameters.values() if tensor.ndim == 2]
    vectors = [tensor for tensor in parameters.values() if tensor.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    for step, batch in zip(range(num_steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps)
        loss = loss_of(parameters, shape, batch, DROPOUT)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        yield loss.item()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=48, help="conversations a step")
    parser.add_argument("--seed", type=int, default=17)
    arguments = parser.parse_args()
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(arguments.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False

    corpus = read_corpus()
    train = [entry for entry in corpus if entry.split == "train"]
    source = ConversationSource(train, arguments.seed)
    tokenizer = train_tokenizer(source.texts())
    tokenizer.save(str(arguments.out_dir / "tokenizer.json"))
    encoder = Encoder(tokenizer)
    seen = encoder.batch(plain_requests(train[::12]), device)
    held_out = encoder.batch(plain_requests([entry for entry in corpus if entry.split == "held_out"]), device)

    shape = Shape(vocab=VOCAB_SIZE)
    parameters = new_parameters(shape, torch.Generator().manual_seed(arguments.seed))
    parameters = {name: tensor.to(device).requires_grad_() for name, tensor in parameters.items()}
    print(f"{sum(tensor.numel() for tensor in parameters.values()) / 1e6:.2f} M parameters on {device}", flush=True)
    started = time.monotonic()
    losses: list[float] = []
    batches = encoder.batches(source, arguments.batch_size, device)
    for loss in updates(parameters, shape, batches, arguments.steps):
        losses.append(loss)
        if len(losses) % 50 == 0:
            with torch.no_grad():
                figures = [loss_of(parameters, shape, batch, 0.0).item() for batch in (seen, held_out)]
            print(
                f"step {len(losses)}: loss {np.mean(losses[-50:]):.3f}, corpus {figures[0]:.3f}, "
                f"held out {figures[1]:.3f}, {time.monotonic() - started:.0f} s",
                flush=True,
            )
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in parameters.items()}
    np.savez(arguments.out_dir / "model.npz", **arrays)


if __name__ == "__main__":
    main()
