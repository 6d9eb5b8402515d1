"""F16: prompts of megabytes cost nobody a lease, and their senders hear what is wrong; a real worker."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from orcd.client import Client
from tests.tasks.slow_engine import slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running

NUM_CHARACTERS = 4 * 1024 * 1024
LONG: dict[str, Any] = {"prompt_token_ids": [9, 8, 7], "max_tokens": 100, "seed": 4, "ignore_eos": True}


def _prompts() -> list[dict[str, Any]]:
    """Six requests of 4 MB each; texts of spaces are never refused by their length alone."""
    texts = [(part * NUM_CHARACTERS)[:NUM_CHARACTERS] for part in ("a", "the old pond ", " ", " \n", "[<|im_")]
    return [*({"prompt": text} for text in texts), {"messages": [{"role": "user", "content": texts[2]}]}]


def test_six_prompts_of_four_megabytes_cost_no_lease(redis_url: str, shallow_chat_model: Path, tmp_path: Path) -> None:
    """F16: each was encoded for seconds in which no other thread ran; leases ran out, and prompts ended POISONED."""
    slow = slow_engine(tmp_path, 0.1)  # so that jobs run meanwhile
    with WorkerProcess(redis_url, shallow_chat_model, tmp_path, **slow) as worker, Client(redis_url) as client:
        running = client.submit_many([LONG] * 8)
        wait_until_running(client, running, 5)
        prompts = [client.submit(**fields) for fields in _prompts()]
        start = time.monotonic()
        later = client.submit(**LONG | {"max_tokens": 5})
        results = [client.result(job_id, timeout=120) for job_id in prompts]
        print(f"refused after {time.monotonic() - start:.1f} s")
        assert [result.error.code for result in results if result.error] == ["CONTEXT_LENGTH_EXCEEDED"] * 6
        assert {client.result(job_id, timeout=120).state for job_id in (*running, later)} == {"succeeded"}
        attempts = [client.status(job_id).attempt for job_id in (*running, *prompts, later)]
        assert attempts == [1] * len(attempts)
        assert [event["code"] for event in worker.events("error")].count("POISONED") == 0
