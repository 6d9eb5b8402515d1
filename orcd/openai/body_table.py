"""The table of the fields that bodies have at OpenAI, vLLM and llama.cpp: what becomes of each one here.

`CHAT`, `COMPLETIONS` and `RESPONSES` are the tables of the three endpoints. A field that is in none is unknown. Where a
request has a field of its own that they do not name (``deadline_s``, ``on_disconnect``), bodies may have it too.
"""

from __future__ import annotations

from typing import Any

from orcd.openai.body_fields import Combined, Ignored, Read, Treatment, Unsupported, is_one_of
from orcd.request import Request

_PRIORITIES = {"priority": 2, "fast": 2, "auto": None, "default": None, "scale": None, "flex": 8}
_VLLM_ONLY = {"disable_fallback", "disable_any_whitespace", "disable_additional_properties", "structural_tag"}
"""Of the fields in ``structured_outputs``."""
_NOT_IN_ALL = (
    *("prompt", "messages", "prompt_token_ids", "max_tokens", "logprobs", "tools", "tool_choice", "response_format"),
    *("parallel_tool_calls", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"),
)
"""Fields of a request that bodies have under other names, or only some have."""


def _none_if(*neutral: Any) -> Any:
    """A conversion that leaves out values which say nothing."""

    def convert(value: Any) -> Any:
        return None if is_one_of(value, neutral) else value

    return convert


def _priority(tier: Any) -> int | None:
    if not isinstance(tier, str) or tier not in _PRIORITIES:
        raise ValueError(f"must be one of {', '.join(_PRIORITIES)}")
    return _PRIORITIES[tier]


def _structured_outputs(value: Any) -> Any:
    """Without what vLLM alone has there. Raises ValueError if that asks for something."""
    if not isinstance(value, dict):
        return value
    for name in _VLLM_ONLY & value.keys():
        if value[name]:
            raise ValueError(f"{name} is not supported")
    return {name: value[name] for name in value if name not in _VLLM_ONLY}


_SAMPLING: dict[str, Treatment] = {
    "temperature": Read("temperature"),
    "top_p": Read("top_p"),
    "n": Read("n"),
    "seed": Read("seed", _none_if(-1)),
    "stop": Read("stop"),
    "frequency_penalty": Read("frequency_penalty"),
    "presence_penalty": Read("presence_penalty"),
    "logit_bias": Read("logit_bias"),
    # vLLM's and llama.cpp's
    "top_k": Read("top_k", _none_if(-1)),
    "min_p": Read("min_p"),
    "repetition_penalty": Read("repetition_penalty"),
    "repeat_penalty": Read("repetition_penalty"),
    "min_tokens": Read("min_tokens"),
    "ignore_eos": Read("ignore_eos"),
    "stop_token_ids": Read("stop_token_ids"),
    "bad_words": Read("bad_words"),
    "include_stop_str_in_output": Read("include_stop_str_in_output"),
    "skip_special_tokens": Read("skip_special_tokens"),
}

_UNSUPPORTED_SAMPLING: dict[str, Treatment] = {
    "allowed_token_ids": Unsupported(),
    "length_penalty": Unsupported("there is no beam search", off=(1,)),
    "logits_processors": Unsupported(),
    "logprob_token_ids": Unsupported("logprobs gives the most probable tokens"),
    "repetition_detection": Unsupported(),
    "return_token_ids": Unsupported(off=(False,)),
    "return_tokens_as_token_ids": Unsupported(off=(False,)),
    "spaces_between_special_tokens": Unsupported(off=(True,)),
    "thinking_token_budget": Unsupported(),
    "truncate_prompt_tokens": Unsupported("shorten the prompt"),
    "truncation_side": Unsupported("shorten the prompt"),
    "use_beam_search": Unsupported(off=(False,)),
    "watermarking": Unsupported(off=(False,)),
}

_OF_LLAMA_CPP: dict[str, Treatment] = {
    "adaptive_target": Unsupported(off=(-1,)),
    "dry_multiplier": Unsupported(off=(0,)),
    "dynatemp_range": Unsupported(off=(0,)),
    "min_keep": Unsupported(off=(0,)),
    "mirostat": Unsupported(off=(0,)),
    "n_discard": Unsupported(off=(0,)),
    "n_indent": Unsupported(off=(0,)),
    "n_keep": Unsupported(off=(0,)),
    "n_probs": Unsupported("use logprobs", off=(0,)),
    "post_sampling_probs": Unsupported(off=(False,)),
    "reasoning_budget_tokens": Unsupported(off=(-1,)),
    "reasoning_control": Unsupported(off=(False,)),
    "repeat_last_n": Unsupported("repetition_penalty is over all tokens", off=(-1,)),
    "response_fields": Unsupported(off=([],)),
    "return_progress": Unsupported(off=(False,)),
    "return_tokens": Unsupported(off=(False,)),
    "samplers": Unsupported("the order of the filters is fixed"),
    "t_max_predict_ms": Unsupported("use deadline_s", off=(-1, 0)),
    "thinking_budget_tokens": Unsupported(off=(-1,)),
    "timings_per_token": Unsupported(off=(False,)),
    "top_n_sigma": Unsupported(off=(-1, 0)),
    "typical_p": Unsupported(off=(1,)),
    "verbose": Unsupported(off=(False,)),
    "xtc_probability": Unsupported(off=(0,)),
    "adaptive_decay": Ignored("goes with adaptive_target, which must be off"),
    "dry_allowed_length": Ignored("goes with dry_multiplier, which must be off"),
    "dry_base": Ignored("goes with dry_multiplier, which must be off"),
    "dry_penalty_last_n": Ignored("goes with dry_multiplier, which must be off"),
    "dry_sequence_breakers": Ignored("goes with dry_multiplier, which must be off"),
    "dynatemp_exponent": Ignored("goes with dynatemp_range, which must be off"),
    "mirostat_eta": Ignored("goes with mirostat, which must be off"),
    "mirostat_tau": Ignored("goes with mirostat, which must be off"),
    "reasoning_budget_message": Ignored("goes with reasoning_budget_tokens, which must be off"),
    "xtc_threshold": Ignored("goes with xtc_probability, which must be off"),
    "backend_sampling": Ignored("where tokens are drawn; the answer does not depend on it"),
    "n_cache_reuse": Ignored("a hint for caching; equal beginnings of prompts are always shared"),
    "sse_ping_interval": Ignored("how the answer is delivered; comments keep every stream open"),
}

_STRUCTURED_OUTPUT: dict[str, Treatment] = {
    "structured_outputs": Read("structured_outputs", _structured_outputs),
    "guided_json": Read("structured_outputs.json"),
    "guided_regex": Read("structured_outputs.regex"),
    "guided_choice": Read("structured_outputs.choice"),
    "guided_grammar": Read("structured_outputs.grammar"),
    "guided_whitespace_pattern": Read("structured_outputs.whitespace_pattern"),
    "guided_decoding_backend": Ignored("names a library of vLLM's; the answer's form does not depend on it"),
    # llama.cpp's
    "json_schema": Read("structured_outputs.json"),
    "grammar": Unsupported("this is GBNF; write it in Lark's notation as structured_outputs.grammar", off=("",)),
}

_COMMON: dict[str, Treatment] = {
    "model": Read("model"),
    "service_tier": Read("priority", _priority),
    "priority": Read("priority"),
    "stream": Ignored("how the answer is delivered; read by who delivers it"),
    "stream_options": Ignored("how the answer is delivered; read by who delivers it"),
    "user": Ignored("names the caller's user; the answer does not depend on it"),
    "safety_identifier": Ignored("names the caller's user; the answer does not depend on it"),
    "metadata": Ignored("the caller's notes; the answer does not depend on them"),
    "store": Ignored("every answer is kept for the job's time to live"),
    "prompt_cache_key": Ignored("a hint for caching; equal beginnings of prompts are always shared"),
    "prompt_cache_retention": Ignored("a hint for caching; equal beginnings of prompts are always shared"),
    "prompt_cache_options": Ignored("a hint for caching; equal beginnings of prompts are always shared"),
    "cache_prompt": Ignored("a hint for caching; equal beginnings of prompts are always shared"),
    "prediction": Ignored("a hint for speed; the answer does not depend on it"),
    "request_id": Ignored("names the request at vLLM; a job has an id of its own"),
    "session_id": Ignored("names the conversation; the answer does not depend on it"),
    "id_slot": Ignored("a hint for caching; equal beginnings of prompts are always shared"),
    "moderation": Unsupported(),
    "cache_salt": Unsupported("equal beginnings of prompts are always shared"),
    "kv_transfer_params": Unsupported(),
    "vllm_xargs": Unsupported(),
    "lora": Unsupported(off=([],)),
    **_SAMPLING,
    **_UNSUPPORTED_SAMPLING,
    **_OF_LLAMA_CPP,
    **_STRUCTURED_OUTPUT,
}

_CHAT_TEMPLATE: dict[str, Treatment] = {
    "chat_template_kwargs": Read("chat_template_kwargs"),
    "documents": Read("chat_template_kwargs.documents"),
    "add_generation_prompt": Read("add_generation_prompt"),
    "continue_final_message": Read("continue_final_message"),
    "chat_template": Unsupported("the worker has one: orcd worker --chat-template FILE"),
    "add_special_tokens": Unsupported("the chat template writes them", off=(False,)),
    "mm_processor_kwargs": Unsupported("requests are text"),
    "media_io_kwargs": Unsupported("requests are text"),
    "include_reasoning": Unsupported(off=(True,)),
    "reasoning_format": Unsupported(off=("auto",)),
}

_OWN: dict[str, Treatment] = {name: Read(name) for name in Request.__struct_fields__ if name not in _NOT_IN_ALL}

_CHAT: dict[str, Treatment] = {
    **_OWN,
    **_COMMON,
    **_CHAT_TEMPLATE,
    "messages": Read("messages"),
    "max_tokens": Read("max_tokens", _none_if(-1)),
    "max_completion_tokens": Read("max_tokens"),
    "n_predict": Read("max_tokens", _none_if(-1)),
    "logprobs": Combined("true asks for log probabilities: of the drawn token and of top_logprobs others"),
    "top_logprobs": Combined("how many alternatives a token; needs logprobs"),
    "tools": Combined("go to the chat template, unless tool_choice is none"),
    "tool_choice": Combined("auto, none, required, a function by its name, or allowed_tools"),
    "parallel_tool_calls": Combined("false ends an answer with its first call"),
    "response_format": Read("response_format"),
    "reasoning_effort": Read("chat_template_kwargs.reasoning_effort"),
    "echo": Unsupported("completions have it", off=(False,)),
    "functions": Unsupported("use tools"),
    "function_call": Unsupported("use tool_choice", off=("none",)),
    "modalities": Unsupported("answers are text", off=(["text"],)),
    "audio": Unsupported("answers are text"),
    "verbosity": Unsupported("say it in a message", off=("medium",)),
    "web_search_options": Unsupported(),
}

_COMPLETIONS: dict[str, Treatment] = {
    **_OWN,
    **_COMMON,
    "prompt": Combined("text, or token ids; at a gateway a list of several, too"),
    "max_tokens": Read("max_tokens", _none_if(-1)),
    "n_predict": Read("max_tokens", _none_if(-1)),
    "logprobs": Read("logprobs"),
    "echo": Combined("the answer begins with the prompt's text, and logprobs with its tokens"),
    "best_of": Unsupported("use n", off=(1,)),
    "suffix": Unsupported("write the model's own fill-in-the-middle tokens into the prompt", off=("",)),
    "add_special_tokens": Unsupported(off=(True,)),
    "prompt_embeds": Unsupported(),
    "response_format": Read("response_format"),
}

_RESPONSES: dict[str, Treatment] = {
    **_OWN,
    **_COMMON,
    **_CHAT_TEMPLATE,
    "input": Combined("text, or a list of items, which become messages"),
    "instructions": Combined("become a system message in front"),
    "max_output_tokens": Read("max_tokens"),
    "include": Combined("message.output_text.logprobs asks for log probabilities"),
    "top_logprobs": Combined("how many alternatives a token; needs include"),
    "text": Combined("its format becomes `response_format`"),
    "reasoning": Combined("its effort is a variable of the chat template"),
    "tools": Combined("functions go to the chat template, unless tool_choice is none"),
    "tool_choice": Combined("auto, none, required, a function by its name, or allowed_tools"),
    "parallel_tool_calls": Combined("false ends an answer with its first call"),
    "n": Unsupported("send the request several times", off=(1,)),
    "prompt_logprobs": Unsupported("chats and completions have it"),
    "background": Ignored("how the answer is delivered; read by who delivers it"),
    "truncation": Unsupported("shorten the input", off=("disabled",)),
    "previous_response_id": Combined("at a gateway, which keeps responses: the one that this one goes on from"),
    "conversation": Unsupported("send the whole conversation as input"),
    "context_management": Unsupported(),
    "max_tool_calls": Ignored("limits calls of tools that OpenAI runs; none are run here"),
    "access_programs": Unsupported(),
    "background_options": Unsupported(off=({"completion_window": "soonest"},)),
    "image": Unsupported("requests are text"),
    "prompt": Unsupported("write the prompt as input"),
}


def _with_others(own: dict[str, Treatment], **others: dict[str, Treatment]) -> dict[str, Treatment]:
    """A table that also knows the fields which only other endpoints have."""
    refused = {name: Unsupported(f"{endpoint} have it") for endpoint, table in others.items() for name in table}
    return {**refused, **own}


CHAT = _with_others(_CHAT, completions=_COMPLETIONS, responses=_RESPONSES)
COMPLETIONS = _with_others(_COMPLETIONS, responses=_RESPONSES, chats=_CHAT)
RESPONSES = _with_others(_RESPONSES, completions=_COMPLETIONS, chats=_CHAT)
