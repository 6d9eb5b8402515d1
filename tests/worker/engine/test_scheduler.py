import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from worker.contract import Sampling
from worker.engine.scheduler import AGEING_STEPS, Scheduler
from worker.engine.sequence import Chunk, Sequence

BLOCK_TOKENS = 4


def scheduler(**sizes: int) -> Scheduler:
    return Scheduler(**{"num_blocks": 16, "block_tokens": BLOCK_TOKENS, "step_tokens": 16, "max_sequences": 4, **sizes})


def sequence(token_ids: list[int], *, max_output: int = 4, priority: int = 0, name: str = "r") -> Sequence:
    return Sequence(name, 0, Sampling(max_tokens=max_output), priority, list(token_ids), len(token_ids), max_output)


def run(machine: Scheduler, chunks: list[Chunk], token_id: int = 1) -> list[Sequence]:
    """Do what the engine does after a step; returns the sequences that ended."""
    drawing = [chunk.sequence for chunk in chunks if chunk.draws]
    machine.launch(chunks)
    for each in drawing:
        machine.append(each, token_id)
        if each.finish_reason is not None:
            machine.remove(each)
    machine.check_invariants()
    return [each for each in drawing if each.finish_reason is not None]


def sizes(chunks: list[Chunk]) -> dict[str, int]:
    return {chunk.sequence.request_id: chunk.num_tokens for chunk in chunks}


def test_a_long_prompt_is_cut_into_chunks_of_the_budget():
    machine = scheduler()
    machine.add(sequence(list(range(40))))
    planned = []
    for _ in range(3):
        chunks = machine.plan()
        planned.append(chunks[0].num_tokens)
        run(machine, chunks)
    assert planned == [16, 16, 8]


@pytest.mark.parametrize(("rewrites_blocks", "num_tokens"), [(True, 1), (False, BLOCK_TOKENS)])
def test_of_a_prompt_whose_blocks_are_all_known_the_last_token_or_the_last_block_is_computed(
    rewrites_blocks: bool, num_tokens: int
):
    machine = scheduler(rewrites_blocks=rewrites_blocks)
    first, second = sequence(list(range(12)), name="first"), sequence(list(range(12)), name="second")
    machine.add(first)
    run(machine, machine.plan())
    machine.add(second)
    chunks = machine.plan()
    assert sizes(chunks) == {"first": 1, "second": num_tokens}
    assert (second.block_ids == first.block_ids[:3]) == rewrites_blocks
    run(machine, chunks)
    assert second.num_output == 1
    assert machine.num_prefix_hit_tokens == 12 - num_tokens


def test_a_prompt_that_is_reported_gets_half_of_the_rows_of_logits_that_nobody_runs_for():
    machine = scheduler(max_sequences=8)
    asking = sequence(list(range(20)))
    asking.prompt_logprobs = bytearray()
    for each in (asking, sequence([50, 51], name="other")):
        machine.add(each)
    chunks = machine.plan()
    assert [(chunk.num_tokens, chunk.num_extra_rows) for chunk in chunks] == [(4, 3), (2, 0)]
    run(machine, chunks)
    assert sizes(machine.plan()) == {"other": 1, "r": 4}
    assert asking.num_reported == 4


def test_a_prompt_that_is_reported_takes_from_the_prefix_cache_what_was_reported_before():
    machine = scheduler(max_sequences=8)
    machine.add(sequence(list(range(13))))
    run(machine, machine.plan())
    for num_reported, num_found in ((0, 0), (7, 4), (12, 12)):
        asking = sequence(list(range(13)), name="asking")
        asking.prompt_logprobs, asking.num_reported = bytearray(), num_reported
        machine.add(asking)
        machine.plan()
        assert asking.num_computed == num_found
        asking.finish_reason = "abort"
        machine.remove(asking)


def test_decodes_come_before_prefills_and_prefill_takes_the_rest_of_the_budget():
    machine = scheduler()
    machine.add(sequence([1, 2, 3], name="decoding"))
    run(machine, machine.plan())
    machine.add(sequence(list(range(30)), name="long", priority=-1))
    assert sizes(machine.plan()) == {"decoding": 1, "long": 15}


def test_more_urgent_requests_go_first_and_equals_in_the_order_of_arrival():
    machine = scheduler(max_sequences=2)
    for name, priority in (("a", 5), ("b", 5), ("urgent", 0)):
        machine.add(sequence([1, 2], name=name, priority=priority))
    assert list(sizes(machine.plan())) == ["urgent", "a"]


def test_a_request_that_waited_long_goes_before_a_more_urgent_newcomer():
    machine = scheduler(max_sequences=1)
    machine.add(sequence([1], name="old", priority=1))
    machine.num_steps += AGEING_STEPS + 1
    machine.add(sequence([1], name="new", priority=0))
    assert list(sizes(machine.plan())) == ["old"]


def test_an_endless_stream_of_more_urgent_requests_cannot_starve_a_patient_one():
    machine = scheduler(max_sequences=1)
    machine.add(sequence([1], max_output=1, name="patient", priority=1))
    ended: list[str] = []
    while "patient" not in ended and len(ended) < 2 * AGEING_STEPS:
        machine.add(sequence([2], max_output=1, name="urgent"))
        ended += [each.request_id for each in run(machine, machine.plan())]
    assert ended == ["urgent"] * AGEING_STEPS + ["patient"]


def test_the_last_in_rank_gives_way_when_blocks_run_out_and_comes_back():
    machine = scheduler(num_blocks=4)
    machine.add(sequence(list(range(4)), max_output=12, name="first"))
    machine.add(sequence(list(range(10, 14)), max_output=12, name="second"))
    ended = []
    for _ in range(60):
        ended += run(machine, machine.plan())
        assert "first" not in [each.request_id for each in machine.waiting]
    assert machine.num_preemptions > 0
    assert [each.request_id for each in ended] == ["first", "second"]
    assert all(each.num_output == 12 for each in ended)
    assert machine.cache.block_tables.pool.num_free == 4


def test_an_equal_prompt_is_computed_once():
    machine = scheduler()
    prompt = list(range(10))
    machine.add(sequence(prompt, name="a"))
    run(machine, machine.plan())
    machine.add(sequence(prompt, name="b"))
    assert sizes(machine.plan())["b"] == 2
    assert machine.num_prefix_hit_tokens == 8


def test_a_prompt_that_is_known_completely_still_computes_its_last_block():
    machine = scheduler()
    prompt = list(range(8))
    machine.add(sequence(prompt, name="a"))
    run(machine, machine.plan())
    machine.add(sequence(prompt, name="b"))
    assert sizes(machine.plan())["b"] == 4


def test_blocks_of_no_known_prefix_are_reused_before_those_of_a_known_one():
    machine = scheduler(num_blocks=3)
    machine.add(sequence([1, 2, 3, 4, 5], max_output=1, name="a"))
    run(machine, machine.plan())  # leaves one full block that is known, one partial one, one never used
    for name, length in (("b", 2), ("b2", 5)):
        machine.add(sequence([7] * length, max_output=1, name=name))
        run(machine, machine.plan())
    machine.add(sequence([1, 2, 3, 4, 5], max_output=1, name="c"))
    assert sizes(machine.plan()) == {"c": 1}


def test_other_choices_wait_for_the_first_one_and_share_its_blocks():
    machine = scheduler()
    leader, follower = sequence(list(range(20)), name="c0"), sequence(list(range(20)), name="c1")
    follower.leader = leader
    machine.add(leader)
    machine.add(follower)
    machine.add(sequence([9] * 3, name="other"))
    first = machine.plan()
    assert sizes(first) == {"c0": 16}
    run(machine, first)
    second = machine.plan()
    assert sizes(second) == {"c0": 4, "other": 3}
    run(machine, second)
    assert sizes(machine.plan())["c1"] == 4
    assert leader.block_ids[:4] == follower.block_ids[:4]


def test_the_first_in_line_is_not_overtaken_by_smaller_ones():
    machine = scheduler(num_blocks=8)
    machine.add(sequence(list(range(20)), name="running"))
    run(machine, machine.plan())
    machine.add(sequence(list(range(50, 70)), name="big"))
    machine.add(sequence([3], name="small"))
    assert list(sizes(machine.plan())) == ["running"]


class RandomTraffic(RuleBasedStateMachine):
    """Random adds, aborts and steps. A shadow of the cache notes which prefix was written to which slot."""

    NUM_BLOCKS, MAX_SEQUENCES, LONGEST = 9, 3, 24

    def __init__(self) -> None:
        super().__init__()
        self.machine = scheduler(num_blocks=self.NUM_BLOCKS, step_tokens=7, max_sequences=self.MAX_SEQUENCES)
        self.shadow: dict[int, tuple[int, ...]] = {}  # slot -> all tokens up to and including its own
        self.live: list[Sequence] = []
        self.num_added = 0

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=LONGEST - 8),
        max_output=st.integers(1, 8),
        priority=st.integers(0, 2),
        num_choices=st.integers(1, 3),
    )
    def add(self, prompt: list[int], max_output: int, priority: int, num_choices: int) -> None:
        leader = None
        for _ in range(num_choices):
            new = sequence(list(prompt), max_output=max_output, priority=priority)
            new.leader, leader = leader, leader or new
            self.machine.add(new)
            self.live.append(new)

    @rule(index=st.integers(0, 20))
    def abort(self, index: int) -> None:
        if index < len(self.live):
            gone = self.live.pop(index)
            gone.finish_reason = "abort"
            self.machine.remove(gone)

    @rule(token_id=st.integers(0, 1))
    def step(self, token_id: int) -> None:
        chunks = self.machine.plan()
        assert bool(chunks) == bool(self.live), "a plan is empty only when there is nothing to do"
        assert sum(chunk.num_tokens for chunk in chunks) <= self.machine.step_tokens
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
        for chunk in chunks:
            assert chunk.num_tokens > 0
            self.write_and_read(chunk)
        for ended in run(self.machine, chunks, token_id):
            self.live.remove(ended)

    def write_and_read(self, chunk: Chunk) -> None:
        each = chunk.sequence
        end = each.num_computed + chunk.num_tokens
        slots = [each.block_ids[i // BLOCK_TOKENS] * BLOCK_TOKENS + i % BLOCK_TOKENS for i in range(end)]
        for i in range(each.num_computed, end):
            self.shadow[slots[i]] = tuple(each.token_ids[: i + 1])
        for i in range(end):
            assert self.shadow[slots[i]] == tuple(each.token_ids[: i + 1]), "a slot holds somebody else's token"

    @invariant()
    def bookkeeping_holds(self) -> None:
        self.machine.check_invariants()

    def teardown(self) -> None:
        """No starvation: the first in rank gets in once the running ones ended, and moves at every step after that."""
        bound = (len(self.live) + 1) * (self.MAX_SEQUENCES + 1) * self.LONGEST
        for _ in range(bound):
            if not self.live:
                break
            self.step(0)
        assert not self.live, "a sequence did not end within the bound"
        assert self.machine.cache.block_tables.pool.num_free == self.NUM_BLOCKS, "a block leaked"


TestRandomTraffic = RandomTraffic.TestCase
TestRandomTraffic.settings = settings(max_examples=80, stateful_step_count=40)


def test_the_place_of_a_sequence_whose_last_token_is_being_drawn_is_somebody_elses():
    machine = scheduler(max_sequences=2, rewrites_blocks=True)
    for name, max_output in (("a", 1), ("b", 4), ("c", 4), ("d", 4)):
        machine.add(sequence([1, 2], name=name, max_output=max_output))
    first = machine.plan()
    assert sizes(first) == {"a": 2, "b": 2}
    machine.launch(first)
    machine.check_invariants()
    second = machine.plan(ahead=1, depth=3)
    assert sizes(second) == {"b": 1, "c": 2}
    machine.launch(second)
    assert sizes(machine.plan(ahead=2, depth=3)) == {"b": 1, "c": 1}, "the place of a was given away once"
    machine.check_invariants()
    for chunk in first:
        machine.append(chunk.sequence, 5)
    machine.remove(first[0].sequence)
    assert [each.request_id for each in machine.waiting] == ["d"]


def test_it_tells_a_lack_of_blocks_from_waiting_for_a_turn():
    machine = scheduler(num_blocks=4, max_sequences=2)
    machine.add(sequence([1] * 8, name="a"))
    machine.add(sequence([2] * 8, name="b"))
    chunks = machine.plan()
    assert list(sizes(chunks)) == ["a"]
    assert machine.lacks_blocks
    chunks[0].sequence.finish_reason = "abort"
    machine.remove(chunks[0].sequence)
    for name in ("c", "d"):
        machine.add(sequence([3], name=name))
    assert list(sizes(machine.plan())) == ["b", "c"]
    machine.plan()
    assert not machine.lacks_blocks, "d waits because two run"
