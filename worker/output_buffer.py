"""What the engine has emitted and the service has not sent yet."""

from __future__ import annotations

from collections.abc import Iterable

from worker.contract import Outputs, TokenOutput, join_outputs


class OutputBuffer:
    """Outputs since the last frame, each choice's joined in one; an error stays by itself, behind the tokens."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, int, bool], list[TokenOutput]] = {}
        self._finished: list[tuple[str, int]] = []

    def __bool__(self) -> bool:
        return bool(self._runs)

    @property
    def has_final(self) -> bool:
        """Whether the last output of any choice is among them."""
        return bool(self._finished)

    def add(self, outputs: Iterable[TokenOutput]) -> None:
        """What another step emitted."""
        for output in outputs:
            key = output.request_id, output.choice, output.finish_reason == "error"
            run = self._runs.get(key)
            if run is None:
                self._runs[key] = [output]
            else:
                run.append(output)
            if output.finish_reason is not None:
                self._finished.append(key[:2])

    def take_all(self) -> Outputs:
        """A frame with all of it."""
        runs, self._runs = self._runs, {}
        self._finished.clear()
        return Outputs(tuple([join_outputs(run) for run in runs.values()]))

    def take_finished(self) -> Outputs:
        """A frame with what there is of choices that have ended; the others' outputs stay."""
        keys = dict.fromkeys((*choice, is_error) for choice in self._finished for is_error in (False, True))
        self._finished.clear()
        return Outputs(tuple([join_outputs(self._runs.pop(key)) for key in keys if key in self._runs]))
