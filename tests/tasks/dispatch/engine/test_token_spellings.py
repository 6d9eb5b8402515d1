"""Tables of what tokens are written as: made once, for as many ids as a model has."""

from __future__ import annotations

import sys
import threading

from tasks.dispatch.engine.token_spellings import TokenSpellings, TokenTable


def test_each_id_is_made_once_and_no_token_each_time() -> None:
    made: list[int] = []

    def make(token_id: int) -> str:
        made.append(token_id)
        return str(token_id)

    table = TokenTable(3, make)
    assert table.of([]) == []
    assert table.of([2, 0, -1]) == ["2", "0", "-1"]
    assert table.of([0, 1, 2, -1]) == ["0", "1", "2", "-1"]
    assert made == [2, 0, -1, 1, -1]


def test_a_padded_model_has_more_ids_than_its_vocabulary() -> None:
    table = TokenTable(2, str)
    assert table.of([1, 7, -1]) == ["1", "7", "-1"]
    assert table.of([3, 2, -1, 100]) == ["3", "2", "-1", "100"]


def test_several_threads_may_ask_for_ids_that_are_not_there_yet() -> None:
    table, wrong = TokenTable(0, str), []

    def ask(step: int) -> None:
        for start in range(0, 2000, 50):
            ids = range(start, start + 50 * step, step)
            wrong.extend([each for each in (table.of(ids),) if each != [str(token_id) for token_id in ids]])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=ask, args=(step,)) for step in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_a_part_of_a_character_is_a_list_of_bytes_and_what_is_no_token_is_empty() -> None:
    spellings = TokenSpellings([b"a", b"\xc3", b'"\n', "é".encode(), b"\xa9("])
    assert spellings.texts.of([0, 1, 2, 3, 4, -1, 9]) == ["a", [0xC3], '"\n', "é", [0xA9, ord("(")], "", ""]
    assert spellings.pieces.of([1, -1, 9]) == [b',"1":"ww=="', b',"-1":""', b',"9":""']
