import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcd.errors import CudaError, InsufficientVram, InvalidRequest
from tests.worker.engine.context_model import Config, ContextModel
from tests.worker.engine.generation import SAMPLINGS, RandomTraffic, engine, finish, generate, ids_of, prompt, traffic
from worker.contract import Abort, Add, Choice, Sampling, StepSizes, Usage


@pytest.fixture(scope="module")
def undisturbed() -> dict[tuple[str, int], tuple]:
    """Every request alone, its prompt in one piece, nothing cached."""
    results = {}
    for each in traffic():
        results |= generate([each], engine(step_tokens=64, prefix_cache=False))
    return results


def test_the_traffic_of_these_tests_ends_in_different_ways(undisturbed):
    assert {reason for _, reason, _ in undisturbed.values()} == {"stop", "length"}
    assert any(logprobs[0] is not None for _, _, logprobs in undisturbed.values())


def test_batched_equals_alone(undisturbed):
    assert generate(traffic()) == undisturbed


def test_chunked_prefill_equals_whole(undisturbed):
    model = ContextModel()
    assert generate(traffic(), engine(model, step_tokens=5)) == undisturbed
    assert max(sum(sizes) for sizes in model.sizes) <= 5


def test_prefix_hit_equals_miss(undisturbed):
    machine = engine()
    assert generate(traffic(), machine) == undisturbed
    hits = machine.stats(memory_bytes=0).prefix_hit_tokens
    assert generate(traffic(), machine) == undisturbed
    assert machine.stats(memory_bytes=0).prefix_hit_tokens >= hits + 60


def test_preempted_equals_uninterrupted(undisturbed):
    machine = engine(cache_tokens=56)
    assert generate(traffic(), machine) == undisturbed
    assert machine.stats(memory_bytes=0).preemptions > 0


def test_an_ended_answer_says_what_it_has_cost():
    machine = engine(cache_tokens=56)
    for _ in range(2):
        for each in traffic():
            machine.add(each)
        outputs = [output for each in finish(machine).values() for output in each]
        assert all((output.usage is None) == (output.finish_reason is None) for output in outputs)
    total = Usage()
    for output in outputs:
        total = total.plus(output.usage)
    stats = machine.stats(memory_bytes=0)
    assert 0 < total.prefix_hit_tokens <= stats.prefix_hit_tokens
    assert 0 < total.preemptions <= stats.preemptions


def test_resumed_equals_uninterrupted(undisturbed):
    for each in traffic():
        ids, reason, logprobs = undisturbed[each.request_id, 0]
        for cut in range(len(ids)):
            resumed = Add(each.request_id, each.prompt_ids, each.sampling, (Choice(0, ids[:cut]),))
            assert generate([resumed])[each.request_id, 0] == (ids[cut:], reason, logprobs[cut:])


def test_a_sequence_that_grows_beyond_the_models_limit_is_computed_anew():
    limit = 20
    results = {}
    for each in traffic():
        results |= generate([each], engine(ContextModel(recompute_at=limit), prefix_cache=False))
    assert results != generate(traffic())
    for options in ({}, {"step_tokens": 5}, {"cache_tokens": 56}):
        machine = engine(ContextModel(recompute_at=limit), **options)
        assert generate(traffic(), machine) == results
        assert generate(traffic(), machine) == results  # short and long prefixes do not mix in the cache


def test_n_choices_equal_requests_with_consecutive_seeds():
    sampling = Sampling(max_tokens=8, temperature=1.0, seed=40)
    several = generate([Add("n", prompt(1, 10), sampling, (Choice(0), Choice(1), Choice(2)))])
    for choice in range(3):
        alone = generate([Add("one", prompt(1, 10), Sampling(max_tokens=8, temperature=1.0, seed=40 + choice))])
        assert several["n", choice] == alone["one", 0]


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_choices_share_their_prompt_whether_or_not_requests_do(prefix_cache: bool):
    machine = engine(prefix_cache=prefix_cache)
    machine.add(Add("n", prompt(1, 15), SAMPLINGS[0], (Choice(0), Choice(1))))
    finish(machine)
    assert machine.stats(memory_bytes=0).prefix_hit_tokens == 12
    machine.add(Add("again", prompt(1, 15), SAMPLINGS[0]))
    finish(machine)
    assert machine.stats(memory_bytes=0).prefix_hit_tokens == (24 if prefix_cache else 12)


def test_the_same_seed_gives_the_same_ids_and_another_seed_gives_others():
    def ids(seed: int) -> tuple[int, ...]:
        return generate([Add("r", (1, 2), Sampling(max_tokens=20, seed=seed))])["r", 0][0]

    assert ids(1) == ids(1) != ids(2)


def test_max_tokens_beyond_the_context_is_clipped_to_what_is_left():
    ids, reason, _ = generate([Add("r", prompt(0, 60), Sampling(max_tokens=1000, temperature=0.0))])["r", 0]
    assert (len(ids), reason) == (4, "length")


def test_a_resumed_choice_that_already_ended_finishes_without_a_token():
    options = Sampling(max_tokens=3, stop_token_ids=(9,))
    by_length = Add("length", (1,), options, (Choice(0, (5, 6, 7)),))
    by_stop = Add("stop", (1,), options, (Choice(0, (9,)),))
    by_context = Add("context", prompt(0, 60), Sampling(max_tokens=100), (Choice(0, (1, 2, 3, 4)),))
    by_less = Add("less", prompt(0, 60), Sampling(max_tokens=100), (Choice(0, (1, 2, 3, 4, 5)),))
    results = generate([by_length, by_stop, by_context, by_less])
    assert {key[0]: (ids, reason) for key, (ids, reason, _) in results.items()} == {
        "length": ((), "length"),
        "stop": ((), "stop"),
        "context": ((), "length"),
        "less": ((), "length"),  # its earlier owner had a larger cache
    }


def test_of_a_resumed_request_only_the_unfinished_choices_go_on():
    machine = engine()
    machine.add(Add("r", (1, 2), Sampling(max_tokens=3), (Choice(0, (5, 6, 7)), Choice(1, (5,)))))
    collected = finish(machine)
    assert ids_of(collected["r", 0]) == ()
    assert len(ids_of(collected["r", 1])) == 2


@pytest.mark.parametrize(
    ("add", "code"),
    [
        (Add("r", (), SAMPLINGS[0]), "INVALID_REQUEST"),
        (Add("r", (32,), SAMPLINGS[0]), "INVALID_REQUEST"),
        (Add("r", prompt(0, 64), SAMPLINGS[0]), "CONTEXT_LENGTH_EXCEEDED"),
        (Add("r", prompt(0, 40), SAMPLINGS[0]), "VRAM_OOM"),
    ],
)
def test_a_request_that_cannot_run_is_answered_by_an_error_output(add: Add, code: str):
    machine = engine(cache_tokens=40)
    machine.add(add)
    (output,) = machine.step()
    assert (output.ids, output.finish_reason, output.error_code) == ((), "error", code)
    assert not machine.has_work


def test_a_second_add_of_a_live_request_is_refused_and_the_first_goes_on():
    machine = engine()
    expected = generate([Add("r", (1, 2), SAMPLINGS[0])])["r", 0][0]
    machine.add(Add("r", (1, 2), SAMPLINGS[0]))
    first = machine.step()
    machine.add(Add("r", (3, 4), SAMPLINGS[0]))
    second = machine.step()
    assert [output.error_code for output in second if output.finish_reason == "error"] == ["INVALID_REQUEST"]
    assert ids_of(finish(machine, first + second)["r", 0]) == expected


def test_an_abort_ends_one_choice_or_all_and_ignores_what_it_does_not_know():
    machine = engine()
    machine.add(Add("r", (1, 2, 3), SAMPLINGS[0], (Choice(0), Choice(1), Choice(2))))
    machine.step()
    machine.abort(Abort("unknown"))
    machine.abort(Abort("r", 7))
    machine.abort(Abort("r", 1))
    outputs = machine.step()
    assert [output.choice for output in outputs if output.finish_reason == "abort"] == [1]
    machine.abort(Abort("r"))
    assert {(output.choice, output.finish_reason) for output in machine.step()} == {(0, "abort"), (2, "abort")}
    assert machine.stats(memory_bytes=0).kv_blocks_used == 0


def test_a_request_with_non_finite_logits_fails_alone():
    expected = generate([Add("good", (1, 2), SAMPLINGS[1])])["good", 0]
    model = ContextModel(poison_id=31)
    results = generate([Add("good", (1, 2), SAMPLINGS[1]), Add("bad", (31, 2), SAMPLINGS[1])], engine(model))
    assert results["good", 0][0][:3] == expected[0][:3]
    assert results["bad", 0][:2] == ((), "error")


@pytest.mark.parametrize(
    ("crash", "code"),
    [(ValueError("secret"), "INTERNAL"), (MemoryError(), "VRAM_OOM"), (InvalidRequest("x"), "INVALID_REQUEST")],
)
def test_a_request_that_the_model_fails_on_fails_alone_and_the_engine_lives_on(crash: Exception, code: str):
    good = Add("good", (1, 2), Sampling(max_tokens=4, temperature=0.0, logit_bias={31: -100.0}))
    expected = generate([good])
    machine = engine(ContextModel(crash_id=31, crash=crash))
    machine.add(good)
    machine.add(Add("bad", (31, 2), SAMPLINGS[0]))
    collected = finish(machine)
    (error,) = collected["bad", 0]
    assert error.error_code == code
    assert "secret" not in error.error_message
    assert ids_of(collected["good", 0]) == expected["good", 0][0]


def test_a_model_that_fails_on_everything_is_not_blamed_on_the_requests():
    machine = engine(ContextModel(crash_id=31))
    for name in "ab":
        machine.add(Add(name, (31,), SAMPLINGS[0]))
    with pytest.raises(ValueError, match="secret"):
        machine.step()


def test_a_lost_device_is_not_an_error_of_a_request():
    machine = engine(ContextModel(crash_id=31, crash=CudaError("matmul: illegal address")))
    machine.add(Add("r", (31,), SAMPLINGS[0]))
    with pytest.raises(CudaError):
        machine.step()


def test_settings_that_leave_no_room_are_refused():
    with pytest.raises(InsufficientVram, match="kv_cache_bytes"):
        engine(cache_tokens=1)
    with pytest.raises(InvalidRequest, match="context_length is 65"):
        engine(context_length=65)


def test_the_default_cache_holds_1024_tokens_for_each_sequence():
    machine = engine(ContextModel(Config(context_length=4096)), kv_cache_bytes=0, max_sequences=2)
    assert machine.max_sequence_tokens == 2048


def test_stats_count_what_happened():
    machine = engine()
    machine.add(Add("r", prompt(0, 20), Sampling(max_tokens=5)))
    finish(machine)
    stats = machine.stats(memory_bytes=7)
    assert (stats.steps, stats.prompt_tokens, stats.output_tokens, stats.memory_bytes) == (6, 20, 5, 7)
    assert (stats.running, stats.waiting, stats.kv_blocks_used, stats.kv_blocks_total) == (0, 0, 0, 64)
    assert stats.step_tokens == StepSizes((4, 1, 1, *[0] * 11), 24)  # 16 and 4 of the prompt, then one at a time


@settings(max_examples=30)
@given(
    step_tokens=st.integers(1, 20),
    cache_tokens=st.integers(56, 120),
    max_sequences=st.integers(1, 8),
    order=st.permutations(range(7)),
)
def test_no_schedule_changes_what_a_request_says(undisturbed, step_tokens, cache_tokens, max_sequences, order):
    adds = traffic()
    machine = engine(step_tokens=step_tokens, cache_tokens=cache_tokens, max_sequences=max_sequences)
    assert generate([adds[i] for i in order], machine) == undisturbed


numbers = st.floats(allow_nan=True, allow_infinity=True, width=32)
token_ids = st.integers(-1, 33)


@settings(max_examples=150)
@given(
    prompt_ids=st.lists(token_ids, max_size=8),
    temperature=st.one_of(st.sampled_from([1e-45, 1e-40, 1e-5]), st.floats(0, 2), numbers),
    top_p=st.one_of(st.floats(0, 1), numbers),
    min_p=st.one_of(st.floats(0, 1), numbers),
    penalty=st.one_of(st.floats(-2, 2), numbers),
    repetition_penalty=st.one_of(st.floats(0.01, 10), numbers),
    top_k=st.integers(-1, 40),
    logit_bias=st.dictionaries(token_ids, st.one_of(st.floats(-100, 100), numbers), max_size=3),
    stop_token_ids=st.lists(token_ids, max_size=3),
    min_tokens=st.integers(-1, 12),
)
def test_what_passes_validation_runs_and_what_does_not_is_an_error_of_the_request(
    prompt_ids, penalty, stop_token_ids, **options
):
    options |= {"presence_penalty": penalty, "frequency_penalty": -penalty, "stop_token_ids": tuple(stop_token_ids)}
    machine = engine()
    machine.add(Add("r", tuple(prompt_ids), Sampling(max_tokens=10, logprobs=1, seed=1, **options)))
    (outputs,) = finish(machine).values()
    assert outputs[-1].error_code in (None, "INVALID_REQUEST")
    assert outputs[-1].finish_reason in ("stop", "length", "error")
    assert all(0 <= token_id < 32 for token_id in ids_of(outputs))


TestRandomTraffic = RandomTraffic.TestCase
TestRandomTraffic.settings = settings(max_examples=30, stateful_step_count=25)
