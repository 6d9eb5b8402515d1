"""What the demo model is taught: conversations made from the corpus, in ever new wordings."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SYLLABLES = [first + vowel + last for first in "bdfghklmnprstvw" for vowel in "aeiou" for last in ("", *"lmnrst")]


@dataclass(frozen=True, slots=True)
class Turn:
    """One request and the haiku that answers it."""

    request: str
    haiku: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns under an optional system message; ``chat`` is false for plain text that a haiku continues."""

    turns: list[Turn]
    system: str | None = None
    chat: bool = True


@dataclass(frozen=True, slots=True)
class Haiku:
    """One line of corpus.jsonl; ``split`` is ``train`` or ``held_out``."""

    subject: str
    split: str
    haiku: str


def read_corpus() -> list[Haiku]:
    """All haiku of corpus.jsonl, in the order of the file."""
    lines = (HERE / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    return [Haiku(**json.loads(line)) for line in lines]


class ConversationSource:
    """An endless, seeded supply of conversations.

    Subjects of the corpus are answered with their haiku. So that a subject it never met still gets three lines,
    other subjects (a list, and invented words) are answered with a *frame*: a haiku with a gap for the subject, chosen
    by its first letter. Copying the subject into the gap is what the model has to learn from these.
    """

    def __init__(self, corpus: list[Haiku], seed: int) -> None:
        wordings = json.loads((HERE / "wordings.json").read_text(encoding="utf-8"))
        self.requests: list[str] = wordings["requests"]
        self.system_messages: list[str] = wordings["system_messages"]
        self.adjectives: list[str] = wordings["adjectives"]
        self.frames: list[str] = wordings["frames"]
        self.frame_subjects: list[str] = wordings["frame_subjects"]
        self.corpus = corpus
        self.random = random.Random(seed)

    def texts(self) -> list[str]:
        """Every sentence the model may meet, for training the vocabulary."""
        haiku = [entry.haiku for entry in self.corpus]
        subjects = sorted({entry.subject for entry in self.corpus}) + self.frame_subjects
        return haiku * 2 + subjects + self.requests + self.system_messages + self.frames + self.adjectives

    def conversation(self) -> Conversation:
        """The next conversation: mostly one request in chat form."""
        if self.random.random() < 0.08:
            return Conversation([self._turn()], chat=False)
        num_turns = self.random.choices((1, 2, 3), (0.88, 0.08, 0.04))[0]
        system = self.random.choice(self.system_messages) if self.random.random() < 0.15 else None
        return Conversation([self._turn() for _ in range(num_turns)], system)

    def _turn(self) -> Turn:
        if self.random.random() < 0.35:
            subject = self._unfamiliar_subject()
            return Turn(self._request(subject), self._framed(subject))
        entry = self.random.choice(self.corpus)
        return Turn(self._request(self._varied(entry.subject)), entry.haiku)

    def _request(self, subject: str) -> str:
        # The plainest wording is the one people try first, so it comes up more often.
        wording = self.requests[0] if self.random.random() < 0.3 else self.random.choice(self.requests)
        return wording.format(subject=subject)

    def _varied(self, subject: str) -> str:
        """The subject as somebody else might type it: other case, no article, an adjective, beside another one."""
        chance = self.random.random()
        article, _, noun = subject.partition(" ")
        has_article = article in ("a", "an", "the")
        if chance < 0.08 and has_article:
            return noun
        if chance < 0.16:
            adjective = self.random.choice(self.adjectives)
            new_article = "an " if adjective[0] in "aeiou" else "a "
            if has_article:
                return (new_article if article != "the" else "the ") + f"{adjective} {noun}"
            return f"{adjective} {subject}"
        if chance < 0.20:
            other = self.random.choice(self.corpus).subject
            return self.random.choice((f"{subject} and {other}", f"{other} and {subject}"))
        if chance < 0.28:
            return self.random.choice((subject.upper(), subject.title(), subject[0].upper() + subject[1:]))
        return subject

    def _unfamiliar_subject(self) -> str:
        chance = self.random.random()
        if chance < 0.55:
            return self.random.choice(self.frame_subjects)
        word = "".join(self.random.choices(SYLLABLES, k=self.random.randint(1, 3)))
        if chance < 0.75:
            return self.random.choice(("", "a ", "the ")) + word
        if chance < 0.9:
            return f"{word} {self.random.choice(self.frame_subjects).split()[-1]}"
        return f"{self.random.choice(self.adjectives)} {self.random.choice(self.frame_subjects).split()[-1]}"

    def _framed(self, subject: str) -> str:
        head = subject.split(maxsplit=1)[-1] if subject.startswith(("a ", "an ", "the ")) else subject
        initial = ord(head[0].lower()) - ord("a")
        choices = self.frames[initial % 26 :: 26]
        return self.random.choice(choices).format(subject=subject)
