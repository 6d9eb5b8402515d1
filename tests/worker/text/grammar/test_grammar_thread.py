import threading

import pytest

from orcd.errors import OrcdError
from tests.conftest import wait_until
from tests.worker.engine.number_compiler import NumberCompiler
from tests.worker.text.test_threads import no_thread
from worker.text.grammar import grammar_thread
from worker.text.grammar.grammar_thread import GrammarThread


def wait_for(thread: GrammarThread, number: int) -> dict[str, object]:
    done: dict[str, object] = {}
    wait_until(lambda: done.update(thread.take_done()) or len(done) >= number)
    return done


def test_grammars_are_compiled_in_turn_and_kept():
    compiler = NumberCompiler()
    thread = GrammarThread(compiler)
    assert thread.find("3") is None
    for grammar in ("3", "1", "2"):
        thread.compile(grammar)
    done = wait_for(thread, 3)
    assert compiler.compiled == list(done) == ["3", "1", "2"]
    assert done["3"].num_ids == 3
    assert thread.find("3") is done["3"]


def test_asking_what_is_done_does_not_wait():
    compiler = NumberCompiler()
    compiler.may_go_on.clear()
    thread = GrammarThread(compiler)
    thread.compile("1")
    assert thread.take_done() == []
    compiler.may_go_on.set()
    assert list(wait_for(thread, 1)) == ["1"]


def test_those_used_last_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grammar_thread, "MAX_KEPT", 2)
    thread = GrammarThread(NumberCompiler())
    for grammar in ("1", "2", "3"):
        thread.compile(grammar)
        wait_for(thread, 1)
        thread.find("1")
    assert [thread.find(grammar) is not None for grammar in ("1", "2", "3")] == [True, False, True]


def test_a_grammar_for_which_there_may_be_no_thread_is_refused_and_the_next_one_compiled(
    monkeypatch: pytest.MonkeyPatch,
):
    thread = GrammarThread(NumberCompiler())
    with monkeypatch.context() as full:
        full.setattr(threading, "_start_new_thread", no_thread)
        thread.compile("3")
    ((grammar, error),) = thread.take_done()
    assert (grammar, error.code) == ("3", "INTERNAL")
    assert error.message == "the thread that compiles grammars cannot be started (Resource temporarily unavailable)"
    thread.compile("4")
    assert list(wait_for(thread, 1)) == ["4"]


def test_a_grammar_that_cannot_be_compiled_is_an_error_of_its_own():
    thread = GrammarThread(NumberCompiler())
    for grammar in ("refused", "broken", "4"):
        thread.compile(grammar)
    done = wait_for(thread, 3)
    assert (done["refused"].code, done["refused"].message) == ("INVALID_REQUEST", "no such rule")
    assert (done["broken"].code, "ValueError" in done["broken"].message) == ("INTERNAL", True)
    assert "secret" not in done["broken"].message
    assert thread.find("refused") is None
    assert thread.find("4") is not None


def test_the_death_of_the_thread_is_told_without_its_text():
    thread = GrammarThread(NumberCompiler())
    thread.compile("deadly")
    with pytest.raises(OrcdError, match=r"died of SystemExit at number_compiler\.py:") as caught:
        wait_until(thread.take_done)
    assert "secret" not in caught.value.message


def test_there_is_no_thread_before_the_first_grammar():
    before = set(threading.enumerate())
    thread = GrammarThread(NumberCompiler())
    assert thread.take_done() == []
    assert set(threading.enumerate()) <= before
