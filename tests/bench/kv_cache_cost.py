"""What a KV cache of 8 bits changes: ``python -m tests.bench.kv_cache_cost [M.gguf ...]``, on the CPU device.

Runs texts of each model with keys and values as they are and as q8. The model that ships reads haiku of its
corpus, each after the plainest request, of which only the answer counts; models of random weights, which are those of
tests/models unless others are named, read the prompts of their references.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kernels.devices.open import open_device
from tasks.demo.training.conversations import read_corpus
from tests.conftest import DEMO_MODEL
from tests.models.files import SMALL
from worker.commands.logits import compute_logits
from worker.model.gguf import open_gguf
from worker.model.registry import load_model
from worker.text.tokenizer import of_model

Float64 = NDArray[np.float64]

MOST_TEXTS = 50
"""Of each part of the corpus, in equal steps."""

HEAD = "model                    tokens  perplexity  with q8   ratio  logits off, in spreads: rms    most  same top"


@dataclass(frozen=True, slots=True)
class Text:
    """Token ids, of which the model is asked to predict those from ``first`` on."""

    ids: list[int]
    first: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Sums over texts; differences of logits are in units of the standard deviation of their row."""

    num_tokens: int
    loss: float  # nats a token
    loss_q8: float
    rms: float
    most: float
    same_top: float  # share of positions whose most probable token stays


def measure(model: Path, texts: list[Text]) -> Cost:
    """Run ``texts`` with both caches."""
    gguf = open_gguf(model)
    plain, quantised = (
        load_model(gguf, open_device("cpu", cache_type=kind), lambda _done, _total: None) for kind in ("f16", "q8")
    )
    losses: list[Float64] = []
    losses_q8: list[Float64] = []
    off: list[Float64] = []
    same: list[NDArray[np.bool_]] = []
    for text in texts:
        rows = [compute_logits(each, text.ids)[text.first - 1 : -1].astype(np.float64) for each in (plain, quantised)]
        targets = np.array(text.ids[text.first :])
        losses.append(_losses(rows[0], targets))
        losses_q8.append(_losses(rows[1], targets))
        off.append((rows[1] - rows[0]) / rows[0].std(axis=1, keepdims=True))
        same.append(rows[0].argmax(axis=1) == rows[1].argmax(axis=1))
    differences = np.concatenate(off)
    return Cost(
        num_tokens=len(differences),
        loss=float(np.concatenate(losses).mean()),
        loss_q8=float(np.concatenate(losses_q8).mean()),
        rms=float(np.sqrt((differences**2).mean())),
        most=float(np.abs(differences).max()),
        same_top=float(np.concatenate(same).mean()),
    )


def _losses(logits: Float64, targets: NDArray[np.int64]) -> Float64:
    """Nats of each of ``targets`` [T] under ``logits`` [T, vocab]."""
    largest = logits.max(axis=1, keepdims=True)
    totals = largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1))
    losses: Float64 = totals - np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return losses


def texts_of(model: Path) -> dict[str, list[Text]]:
    """What ``model`` reads, by the name that its row gets."""
    if model == DEMO_MODEL:
        return {f"{model.stem}, {split}": list(_haiku(model, split)) for split in ("train", "held_out")}
    with np.load(model.with_suffix(".npz")) as reference:
        names = [name for name in reference.files if name.startswith("p") and name.endswith("_ids")]
        return {model.stem: [Text(reference[name].tolist(), 1) for name in names]}


def _haiku(model: Path, split: str) -> Iterator[Text]:
    tokenizer = of_model(open_gguf(model).metadata, "")
    entries = [entry for entry in read_corpus() if entry.split == split]
    for entry in entries[:: -(-len(entries) // MOST_TEXTS)]:
        request = f"<|im_start|>user\nWrite a haiku about {entry.subject}<|im_end|>\n<|im_start|>assistant\n"
        start, answer = (
            tokenizer.encode(text, add_special=False, parse_special=True)
            for text in (request, entry.haiku + "<|im_end|>")
        )
        yield Text([*start, *answer], len(start))


def row(name: str, cost: Cost) -> str:
    """A line of the table."""
    perplexity, perplexity_q8 = np.exp(cost.loss), np.exp(cost.loss_q8)
    return (
        f"{name:<24} {cost.num_tokens:6} {perplexity:11.4f} {perplexity_q8:8.4f} {perplexity_q8 / perplexity:7.5f}"
        f" {cost.rms:28.5f} {cost.most:7.4f} {cost.same_top:9.2%}"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="*", default=[DEMO_MODEL, *SMALL.values()])
    print(HEAD)
    for model in parser.parse_args().models:
        for name, texts in texts_of(model).items():
            print(row(name, measure(model, texts)), flush=True)


if __name__ == "__main__":
    main()
