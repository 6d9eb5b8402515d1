"""Where the readers of calls say what they have read, in tests."""

from __future__ import annotations


class NotingSink:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def begin(self, name: str) -> None:
        self.told.append(name)

    def add_arguments(self, text: str) -> None:
        self.told.append(text)

    def accept(self) -> None:
        self.told.append("accepted")
