"""The table of the fields of bodies: what is in it, and the page that shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from orcd.openai.body_fields import Combined, Ignored, Read, Treatment, Unsupported
from orcd.openai.body_table import CHAT, COMPLETIONS, RESPONSES
from orcd.request import Request

PAGE = Path(__file__).parents[3] / "docs" / "openai.md"
TABLES = {"chat": CHAT, "completions": COMPLETIONS, "responses": RESPONSES}

OPENAI = {
    "chat": """
    audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens
    messages metadata modalities model moderation n parallel_tool_calls prediction presence_penalty
    prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort response_format
    safety_identifier seed service_tier stop store stream stream_options temperature tool_choice tools
    top_logprobs top_p user verbosity web_search_options""",
    "completions": """
    best_of echo frequency_penalty logit_bias logprobs max_tokens model n presence_penalty prompt seed
    stop stream stream_options suffix temperature top_p user""",
    "responses": """
    access_programs background background_options context_management conversation image include input instructions
    max_output_tokens
    max_tool_calls metadata model moderation parallel_tool_calls previous_response_id prompt
    prompt_cache_key prompt_cache_options prompt_cache_retention reasoning safety_identifier
    service_tier store stream stream_options temperature text tool_choice tools top_logprobs top_p
    truncation user""",
}
"""The fields that bodies have in the openai package, version 3.57."""

LLAMA_CPP = """
adaptive_decay adaptive_target backend_sampling cache_prompt dry_allowed_length dry_base dry_multiplier
dry_penalty_last_n dry_sequence_breakers dynatemp_exponent dynatemp_range frequency_penalty grammar id_slot ignore_eos
json_schema logit_bias lora min_keep min_p mirostat mirostat_eta mirostat_tau n n_cache_reuse n_discard n_indent n_keep
n_predict n_probs post_sampling_probs presence_penalty reasoning_budget_message reasoning_budget_tokens
reasoning_control repeat_last_n repeat_penalty response_fields return_progress return_tokens samplers seed
sse_ping_interval stop stream stream_options t_max_predict_ms temperature thinking_budget_tokens timings_per_token top_k
top_n_sigma top_p typical_p verbose xtc_probability xtc_threshold"""
"""The fields that callers of llama.cpp's server may give in any body."""


def _meaning(treatment: Treatment) -> str:
    match treatment:
        case Read(to=to):
            return f"`{to}`"
        case Combined(how=how):
            return how
        case Ignored(why=why):
            return f"no effect: {why}"
        case Unsupported(advice=advice, off=off):
            passes = f" (may be {', '.join(f'`{json.dumps(value)}`' for value in off)})" if off else ""
            return "not supported" + (f": {advice}" if advice else "") + passes


def _rows() -> list[str]:
    """A row for each field and each way of treating it, with the endpoints that treat it so."""
    rows: dict[tuple[str, str], list[str]] = {}
    for endpoint, table in TABLES.items():
        for name, treatment in table.items():
            if not _meaning(treatment).endswith(" have it"):
                rows.setdefault((name, _meaning(treatment)), []).append(endpoint)
    return [f"| `{name}` | {', '.join(rows[name, meaning])} | {meaning} |" for name, meaning in sorted(rows)]


@pytest.mark.parametrize("endpoint", TABLES)
def test_every_field_of_openais_is_known(endpoint: str) -> None:
    assert set(OPENAI[endpoint].split()) <= TABLES[endpoint].keys()


@pytest.mark.parametrize("endpoint", TABLES)
def test_every_field_of_llama_cpps_is_known(endpoint: str) -> None:
    assert set(LLAMA_CPP.split()) <= TABLES[endpoint].keys()


@pytest.mark.parametrize("table", TABLES.values())
def test_what_is_read_is_a_field_of_a_request(table: dict[str, Treatment]) -> None:
    read = {treatment.to.partition(".")[0] for treatment in table.values() if isinstance(treatment, Read)}
    assert read <= set(Request.__struct_fields__)


@pytest.mark.parametrize("table", TABLES.values())
def test_every_field_of_a_request_can_be_said(table: dict[str, Treatment]) -> None:
    asked = {
        "prompt",
        "messages",
        "prompt_token_ids",
        "logprobs",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
    }  # which endpoints read by themselves
    templates = {"chat_template_kwargs", "add_generation_prompt", "continue_final_message"}  # only where messages are
    read = {treatment.to.partition(".")[0] for treatment in table.values() if isinstance(treatment, Read)}
    missing = set(Request.__struct_fields__) - read - asked - (templates if table is COMPLETIONS else set())
    assert missing == ({"n", "response_format", "prompt_logprobs"} if table is RESPONSES else set())


def test_a_field_of_another_endpoint_is_known_as_one() -> None:
    assert CHAT["suffix"] == Unsupported("completions have it")
    assert COMPLETIONS["messages"] == Unsupported("chats have it")
    assert RESPONSES["max_completion_tokens"] == Unsupported("chats have it")


def test_the_page_shows_the_table() -> None:
    rows = re.findall(r"^\| `.*", PAGE.read_text(), re.MULTILINE)
    assert rows == _rows(), "it should be:\n" + "\n".join(_rows())
