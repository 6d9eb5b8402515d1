"""Figures for Prometheus."""

from __future__ import annotations

import re
from pathlib import Path

from orcd.errors import Poisoned
from orcd.events import Position, Token
from orcd.request import parse
from orcd.store.token_log import LoggedEvent
from tasks.dispatch.active_job import ActiveJob
from tasks.observe.metrics.metrics import Metrics
from tests.tasks.dispatch.byte_model import ENCODER, READY
from tests.tasks.dispatch.claims import claim
from tests.tasks.observe.watched import STATS, Watched, canary_job
from worker.settings import Settings


def test_jobs_that_go_on_are_told_from_new_ones(watched: Watched) -> None:
    request = parse({"prompt": "a"})
    logged = (LoggedEvent(Position(1, 0), Token("b", 1, [98])),)
    for found in (claim(request, 1), claim(request, 2), claim(request, 1, log=logged)):
        watched.observer.job_started(ActiveJob(found, ENCODER.encode(request, READY), READY, lambda outcome: None))
    assert watched.sample("orcd_resumes_total") == 2


def test_an_error_is_counted_by_its_code_and_a_lost_lease_by_itself(watched: Watched) -> None:
    job = canary_job(Poisoned("given up"))
    watched.observer.job_ended(job, job.result)
    watched.observer.job_dropped(canary_job(), is_lost=True)
    watched.observer.job_dropped(canary_job(), is_lost=False)
    assert watched.sample("orcd_job_errors_total", code="POISONED") == 1
    assert watched.sample("orcd_leases_lost_total") == 1
    assert watched.sample("orcd_jobs_total", state="cancelled") == 0, "there from the start, for rates"


def test_a_page_has_both_names_of_a_figure_unless_vllms_are_turned_off() -> None:
    both = Metrics(Settings(name="demo", device="cpu"))
    own = Metrics(Settings(name="demo", device="cpu", metrics_compat="none"))
    for metrics in (both, own):
        metrics.set_engine_stats(STATS)
        assert b'orcd_engine_running{device="cpu",model="demo"' in metrics.page()
        assert b"_created" not in metrics.page()
    assert b'vllm:num_requests_running{engine="0",model_name="demo"} 3.0\n' in both.page()
    assert b"vllm" not in own.page()


def test_the_page_of_the_documentation_lists_all_that_there_are() -> None:
    page = (Path(__file__).parents[4] / "docs" / "metrics.md").read_text()
    of_workers = re.sub(r"^## The gateway$.*?(?=^## )", "", page, flags=re.MULTILINE | re.DOTALL)
    listed = set(re.findall(r"\b(?:orcd_|vllm:)[a-z0-9_]+", of_workers))
    text = Metrics(Settings(name="demo", device="cpu")).page().decode()
    assert set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) == listed
