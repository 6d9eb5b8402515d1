"""The requests of a fault test, each with the answer that it gives alone on a quiet worker."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tasks.demo
from orcd.client import Client
from tests.chaos.clients.seen import Answer
from tests.models.files import SMALL

DEMO = Path(tasks.demo.__file__).parent / "haiku-q4_k_m.gguf"
OTHER = SMALL["qwen2-q4_k_m"]
ALONE_TIMEOUT_S = 60.0
FORM = {
    "type": "json_schema",
    "json_schema": {
        "name": "scene",
        "schema": {
            "type": "object",
            "properties": {
                "season": {"enum": ["spring", "autumn"]},
                "words": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["season"],
        },
    },
}
PROMPTS = ("old pond", "The autumn rain", "Snow on", "A heron", "Write of the sea", "moon ", "Under one umbrella")


@dataclass(frozen=True, slots=True)
class Case:
    """One request. ``fields`` are what a client gives; ``text`` is that of a chat."""

    number: int
    model: str
    fields: dict[str, Any]
    answer: Answer = ()
    text: str = ""

    @property
    def num_choices(self) -> int:
        """How many answers are asked for."""
        return int(self.fields.get("n", 1))


def make_cases(seed: int, model: Path, num_cases: int) -> list[Case]:
    """Requests of many kinds for one model, all of them greedy or with a seed."""
    chance = random.Random(f"{seed} {model.stem}")
    return [_make_case(chance, number, model) for number in range(num_cases)]


def _make_case(chance: random.Random, number: int, model: Path) -> Case:
    is_demo = model == DEMO
    text = f"{chance.choice(PROMPTS)} {number}"
    prompts: list[dict[str, Any]] = [
        {"prompt": text},
        {"prompt_token_ids": [5 + number, 7, 11, 13]},
        {"messages": [{"role": "user", "content": text}]},
    ]
    prompt = prompts[number % 3]
    longest = 130 if is_demo else 160
    fields = prompt | {
        "model": model.stem,
        "max_tokens": chance.randrange(24, longest),
        "temperature": chance.choice([0.0, 0.9, 1.0]),
        "seed": 1000 + number,
        "n": chance.choice([1, 1, 2, 3, 4]) if number % 2 else 1,
        "ignore_eos": chance.random() < 0.7,
        "stop": chance.choice([[], [], ["the"], ["autumn evening", "rain"]]),
        "top_p": chance.choice([1.0, 0.9]),
        "repetition_penalty": chance.choice([1.0, 1.0, 1.1]),
        "priority": chance.choice([0, 3, 5, 9]),
        "tenant": chance.choice([None, "one", "other"]),
    }
    if chance.random() < 0.2:
        fields["logprobs"] = 2
    if chance.random() < 0.15:
        fields["response_format"] = FORM
    return Case(number, model.stem, fields, text=text if number % 3 == 2 else "")


def with_answers(client: Client, cases: Sequence[Case]) -> list[Case]:
    """The cases with their answers: each runs alone, one after the other. Raises the error of one that fails."""
    answered = []
    for case in cases:
        result = client.result(client.submit(**case.fields), timeout=ALONE_TIMEOUT_S).raise_for_error()
        answered.append(replace(case, answer=tuple(result.choices)))
    return answered


def make_long_cases(seed: int) -> list[Case]:
    """Requests for the model that ships which take a few seconds each."""
    chance = random.Random(seed)
    cases = []
    for number in range(10):
        sampled = {"temperature": chance.choice([0.0, 0.9]), "seed": number, "max_tokens": chance.randrange(80, 180)}
        fields = {"prompt": f"{chance.choice(PROMPTS)} {number}", "ignore_eos": True, "model": DEMO.stem, **sampled}
        cases.append(Case(number, DEMO.stem, fields))
    return cases
