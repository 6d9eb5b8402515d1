import numpy as np
import pytest

from kernels.batch import SamplingParams
from kernels.ops.attention_plan import SHORT_CONTEXT
from tests.worker.engine.context_model import Config
from tests.worker.engine.cuda.late_device import LateModel
from worker.engine.cuda.buffers import StepBuffers, StepLimits
from worker.engine.cuda.decode_graphs import DecodeGraphs, empty_rows, make_buckets
from worker.engine.cuda.pinned_ring import UploadRing
from worker.engine.cuda.step_graph import HostedDraw

NO_DRAW = HostedDraw(lambda *_: None, lambda *_: None)

PLAIN = {"is_greedy": False, "has_updates": True}


@pytest.mark.parametrize(
    ("most", "buckets"),
    [
        (1, (1,)),
        (5, (1, 2, 4, 5)),
        (64, (1, 2, 4, 8, 16, 24, 32, 48, 64)),
        (600, (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 600)),
    ],
)
def test_buckets_end_with_the_largest_step(most: int, buckets: tuple[int, ...]):
    assert make_buckets(most) == buckets


@pytest.mark.parametrize("capture", [True, False])
def test_a_step_runs_in_the_smallest_bucket_that_holds_it(capture: bool):
    model = LateModel()
    model.one_kernel_contexts = {}
    limits = StepLimits(block_tokens=4, step_tokens=16, max_sequences=6, max_sequence_tokens=32, vocab_size=32)
    buffers = StepBuffers.allocate(model.device.step_buffers, limits)
    rows = buffers.rows
    empty_rows(model.device.ops, rows, UploadRing(model.device, rows.updates.shape[0], 1), limits.block_tokens)
    drawn: list[int] = []

    def draw(logits: np.ndarray, params: SamplingParams) -> None:
        model.device.enqueue(lambda: drawn.append(logits.shape[0]))
        assert params.rows.shape[0] == logits.shape[0]

    cache = model.allocate_cache(8, 4)
    graphs = DecodeGraphs(
        model, cache, rows, limits.block_tokens, NO_DRAW._replace(draw=draw), buffers.prefixes, [], capture=capture
    )
    assert [graphs.bucket_for(number) for number in range(1, 7)] == [1, 2, 4, 4, 6, 6]
    model.device.run_until(len(model.device._queue))
    drawn.clear()
    before = len(model.device._queue)
    graphs.graph(4, shares=False, context=9, turn=0, **PLAIN).launch()
    whole = len(model.device._queue)
    assert whole > before
    graphs.graph(4, shares=False, context=9, turn=0, **PLAIN).launch_forward()
    assert len(model.device._queue) == whole + (whole - before) - 1, "all but the op that draws"
    graphs.graph(4, shares=False, context=9, turn=0, **PLAIN).launch_draw(reports=True)
    model.device.run_until(len(model.device._queue))
    assert drawn == [4], "the host's part of the draw is in the second half of a step that is launched in two"


@pytest.mark.parametrize("capture", [True, False])
def test_few_sequences_with_a_long_context_have_a_graph_of_their_own(capture: bool):
    model = LateModel()
    model.one_kernel_contexts = {1: 8, 2: 6}
    host_ids = [np.full(16, 255, np.uint8) for _ in range(2)]
    limits = StepLimits(block_tokens=4, step_tokens=16, max_sequences=4, max_sequence_tokens=32, vocab_size=32)
    buffers = StepBuffers.allocate(model.device.step_buffers, limits)
    rows, ops = buffers.rows, model.device.ops
    empty_rows(ops, rows, UploadRing(model.device, rows.updates.shape[0], 1), limits.block_tokens)
    steps: list[tuple[bool, bool]] = []
    forward = model.forward
    model.forward = lambda step, cache: (
        steps.append((step.has_long_context, step.prefixes is not None)) or forward(step, cache)
    )
    cache = model.allocate_cache(8, 4)
    graphs = DecodeGraphs(model, cache, rows, limits.block_tokens, NO_DRAW, buffers.prefixes, host_ids, capture=capture)
    assert not any(is_long for is_long, _ in steps)
    assert graphs.most_in_one_kernel == 2
    for bucket, most in model.one_kernel_contexts.items():
        plain, long, sharing = (
            graphs.graph(bucket, shares=shares, context=context, turn=0, **PLAIN)
            for shares, context in ((False, most), (False, most + 1), (True, most + 1))
        )
        assert graphs.graph(bucket, shares=True, context=most, turn=0, **PLAIN) is plain, (
            "in one kernel each attends alone"
        )
        for graph, step in ((plain, (False, False)), (long, (True, False)), (sharing, (True, True))):
            steps.clear()
            graph.launch()
            assert set(steps) <= {step}
            assert capture or steps, "a captured graph does not run the forward pass again"
            assert graph.tells_host is (graph is plain)
        for turn, ids in enumerate(host_ids):
            for is_greedy, has_updates in ((False, False), (True, True), (True, False)):
                kind = {"is_greedy": is_greedy, "has_updates": has_updates}
                graphs.graph(bucket, shares=False, context=most, turn=turn, **kind).launch()
                model.device.run_until(len(model.device._queue))
                assert ids.view(np.int32)[:bucket].tolist() == rows.drawn[:bucket].tolist()
                ids[:] = 255
    assert graphs.graph(4, shares=False, context=9, turn=0, **PLAIN) is graphs.graph(
        4, shares=False, context=8, turn=0, **PLAIN
    )


def test_many_sequences_whose_attention_is_cut_otherwise_have_graphs_for_long_contexts():
    model = LateModel()
    model.one_kernel_contexts = {}
    model.model.config = Config(num_kv_heads=2, head_dim=64)
    model.config = model.model.config
    limits = StepLimits(block_tokens=4, step_tokens=256, max_sequences=256, max_sequence_tokens=32, vocab_size=32)
    buffers = StepBuffers.allocate(model.device.step_buffers, limits)
    rows = buffers.rows
    empty_rows(model.device.ops, rows, UploadRing(model.device, rows.updates.shape[0], 1), limits.block_tokens)
    cache = model.allocate_cache(8, 4)
    graphs = DecodeGraphs(model, cache, rows, limits.block_tokens, NO_DRAW, buffers.prefixes, [], capture=False)
    assert graphs.short_contexts == {192: SHORT_CONTEXT, 256: SHORT_CONTEXT}
    for bucket in graphs.buckets:
        for shares in (False, True):
            short, long = (
                graphs.graph(bucket, shares=shares, context=SHORT_CONTEXT + more, turn=0, **PLAIN) for more in (0, 1)
            )
            assert (short is long) == (shares or bucket < 192)
            assert (short is graphs.graph(bucket, shares=False, context=1, turn=0, **PLAIN)) != shares
