"""The figures of MODEL_CARD.md: ``python -m tasks.demo.training.evaluate haiku-q4_k_m.gguf``.

llama.cpp generates; PyTorch, on the weights dequantised from the same file, measures the losses and generates again
to compare. Every answer is printed, to be read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest.mock import patch

import gguf
import llama_cpp  # type: ignore[import-not-found,unused-ignore]
import numpy as np
import torch  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from tasks.demo.training.conversations import Haiku, read_corpus
from tasks.demo.training.network import Shape, final_hidden, logits

UNSEEN_SUBJECTS = (
    *("gravity", "ivy", "a potter", "the harvest", "geese", "a violin", "soup", "a compass"),  # held out
    *("an escalator", "thunderclouds", "a stapled note", "the dentist's chair", "a lost umbrella"),
    *("shared memory", "a hot-air balloon", "a crossword", "driftwood", "the night watchman", "a tin whistle"),
    "an abandoned railway",
)
NUM_COMPARED = 20


def prompt(subject: str) -> str:
    """The plainest request, in ChatML."""
    return f"<|im_start|>user\nWrite a haiku about {subject}<|im_end|>\n<|im_start|>assistant\n"


def open_llama(path: Path) -> llama_cpp.Llama:
    """The file in llama.cpp, with its weights as they are stored.

    llama.cpp otherwise repacks them for the CPU's matrix instructions, and with version 0.3.36 of its Python package
    that crashed on a CPU with AMX. The high-level class has no argument for it, so its defaults are changed.
    """
    parameters = llama_cpp.llama_model_default_params()
    parameters.use_extra_bufts = False
    with patch("llama_cpp.llama_cpp.llama_model_default_params", return_value=parameters):
        return llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, verbose=False)


class ShippedModel:
    """The shipped file under both programs."""

    def __init__(self, path: Path) -> None:
        self.llama = open_llama(path)
        tensors = gguf.GGUFReader(path).tensors
        self.parameters: dict[str, Tensor] = {
            tensor.name: torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type)) for tensor in tensors
        }
        self.shape = Shape(vocab=self.llama.n_vocab())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it included."""
        ids: list[int] = self.llama.tokenize(text.encode(), add_bos=False, special=True)
        return ids

    def answer_ids(self, subject: str) -> list[int]:
        """llama.cpp's greedy answer, without its end token."""
        ids: list[int] = []
        for token_id in self.llama.generate(self.encode(prompt(subject)), temp=0.0, repeat_penalty=1.0):
            if token_id == self.llama.token_eos() or len(ids) == 64:
                break
            ids.append(token_id)
        return ids

    def answer(self, subject: str) -> str:
        """llama.cpp's greedy answer as text."""
        text: str = self.llama.detokenize(self.answer_ids(subject)).decode(errors="replace")
        return text

    def loss(self, haiku: list[Haiku]) -> float:
        """Mean cross-entropy of the haiku and its end token after the plainest request, in nats a token."""
        total, count = 0.0, 0
        for entry in haiku:
            start = self.encode(prompt(entry.subject))
            target = self.encode(entry.haiku + "<|im_end|>")
            predicted = self.predicted([*start, *target])[len(start) - 1 : -1]
            total += torch.nn.functional.cross_entropy(predicted, torch.tensor(target), reduction="sum").item()
            count += len(target)
        return total / count

    def predicted(self, ids: list[int]) -> Tensor:
        """PyTorch's logits ``[len(ids), vocab]``."""
        return logits(self.parameters, final_hidden(self.parameters, self.shape, torch.tensor([ids])))[0]

    def disagreement(self, subject: str) -> str | None:
        """Where llama.cpp's greedy answer leaves PyTorch's, with PyTorch's margin there; None where nowhere."""
        start = self.encode(prompt(subject))
        target = [*self.answer_ids(subject), self.llama.token_eos()]
        predicted = self.predicted([*start, *target])[len(start) - 1 : -1]
        for step, (row, token_id) in enumerate(zip(predicted, target, strict=True)):
            if row.argmax() != token_id:
                return f"{subject}: token {step}, {(row.max() - row[token_id]).item():.3f} below PyTorch's choice"
        return None


def is_three_lines(text: str) -> bool:
    """Whether the answer has the form of a haiku: exactly three lines, none empty."""
    lines = text.split("\n")
    return len(lines) == 3 and all(line.strip() for line in lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    torch.set_grad_enabled(False)
    model = ShippedModel(parser.parse_args().model)
    corpus = read_corpus()
    for split in ("train", "held_out"):
        print(f"loss, {split}: {model.loss([entry for entry in corpus if entry.split == split]):.3f} nats a token")

    learned = sorted({entry.subject for entry in corpus if entry.split == "train"})
    known_haiku = {entry.haiku for entry in corpus}
    for title, subjects in (("corpus subjects", learned), ("unseen subjects", list(UNSEEN_SUBJECTS))):
        answers = {subject: model.answer(subject) for subject in subjects}
        for subject, answer in answers.items():
            print(f"{'=' if answer in known_haiku else '~'} {subject}: {answer!r}")
        lines = np.mean([is_three_lines(answer) for answer in answers.values()])
        known = np.mean([answer in known_haiku for answer in answers.values()])
        print(f"{len(subjects)} {title}: three lines {lines:.1%}, a haiku of the corpus {known:.1%}")

    compared = learned[:: len(learned) // NUM_COMPARED][:NUM_COMPARED]
    disagreements = [found for subject in compared if (found := model.disagreement(subject))]
    print(f"greedy, llama.cpp = PyTorch: {len(compared) - len(disagreements)} of {len(compared)}")
    print("\n".join(disagreements))


if __name__ == "__main__":
    main()
