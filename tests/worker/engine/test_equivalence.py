"""What a request says does not depend on what happens around it: on real models, through the real ops."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from kernels.batch import Step
from kernels.devices.open import open_device
from kernels.reference.attention import TILE_KEYS
from tests.models.files import KIT, SMALL
from tests.worker.engine.bracket_constraint import constraint_of
from tests.worker.logprob_records import TokenLogprobs
from tests.worker.tiny_model import write_tiny_model
from worker.contract import Add, Choice, Sampling
from worker.engine.engine import Engine
from worker.model.gguf import open_gguf
from worker.model.registry import Model, load_model
from worker.settings import Settings

OF_THE_KIT = ("qwen2-untied-q8_0", "qwen2-tied-q4_k_m", "llama-q4_k_m", "phi3-longrope-f16")
WITH_REFERENCE = SMALL | {name: path for name, path in KIT.items() if name in OF_THE_KIT}
MODELS = SMALL | {name: path for name, path in KIT.items() if name in ("qwen2-untied-q8_0", "phi3-longrope-f16")}
IN_8_BITS = ("tiny", "gpt-oss-mxfp4_moe", "qwen35-q4_k_m")
"""Models that run with keys and values of 8 bits, too: all that differs is in ops which every model has."""
NEAR_TIE = 0.01  # the conformance kit's bound for float32 arithmetic


def load(path: Path, cache_type: str = "f16") -> Model:
    return load_model(open_gguf(path), open_device("cpu", cache_type=cache_type), lambda _done, _total: None)


NAMES = ["tiny", "shipped", *MODELS, *(f"{name}, q8" for name in IN_8_BITS)]


def load_by(name: str, shallow_model: Path, folder: Path) -> Model:
    """One of `NAMES`. ``shipped`` is the first layer of that: what a model says does not matter here."""
    name, _, cache_type = name.partition(", ")
    if name == "tiny":
        path = write_tiny_model(folder / "tiny.gguf")
    else:
        path = shallow_model if name == "shipped" else MODELS[name]
    return load(path, cache_type or "f16")


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_by(request.param, shallow_model, tmp_path_factory.mktemp("model"))


def traffic(model: Model) -> list[Add]:
    """Prompts of mixed lengths with a common beginning, greedy, sampled, and with a constraint."""
    generator = np.random.default_rng(5)
    longest = min(model.config.context_length - 30, 68)
    common = generator.integers(0, model.config.vocab_size, longest).tolist()
    adds = []
    for number, length in enumerate(np.linspace(3, longest, 8).astype(int)):
        own = generator.integers(0, model.config.vocab_size, 4).tolist()
        sampling = Sampling(max_tokens=8, temperature=0.7 * (number % 2), seed=number, top_p=0.95)
        adds.append(Add(f"{'crr'[number % 3]}{number}", (*common[:length], *own), sampling))
    return adds


def engine(model: Model, *, num_blocks: int = 200, **options: object) -> Engine:
    defaults = {"device": "cpu", "kv_block_tokens": 8, "step_tokens": 64, "max_sequences": 16}
    return Engine(model, Settings(**{**defaults, "kv_cache_bytes": num_blocks * model.bytes_per_block(8), **options}))


def generate(adds: list[Add], machine: Engine) -> dict[tuple[str, int], tuple[int, ...]]:
    for add in adds:
        machine.add(add, constraint_of(add))
    ids: dict[tuple[str, int], tuple[int, ...]] = {}
    while machine.has_work:
        for output in machine.step():
            assert output.finish_reason != "error", output.error_message
            key = output.request_id, output.choice
            ids[key] = ids.get(key, ()) + output.ids
        machine.check_invariants()
    return ids


@pytest.fixture(scope="module")
def undisturbed(model: Model) -> dict[tuple[str, int], tuple[int, ...]]:
    ids: dict[tuple[str, int], tuple[int, ...]] = {}
    for add in traffic(model):
        ids |= generate([add], engine(model, step_tokens=512, prefix_cache=False))
    return ids


def test_batched_equals_alone(model: Model, undisturbed: dict):
    assert generate(traffic(model), engine(model, prefix_cache=False)) == undisturbed


def test_chunked_prefill_equals_whole(model: Model, undisturbed: dict):
    assert generate(traffic(model), engine(model, step_tokens=11, prefix_cache=False)) == undisturbed


def test_prefix_hit_equals_miss(model: Model, undisturbed: dict):
    machine = engine(model)
    assert generate(traffic(model), machine) == undisturbed
    assert generate(traffic(model), machine) == undisturbed
    assert machine.stats(memory_bytes=0).prefix_hit_tokens > 100


def test_preempted_equals_uninterrupted(model: Model, undisturbed: dict):
    machine = engine(model, num_blocks=10)  # those of the longest sequence
    assert generate(traffic(model), machine) == undisturbed
    assert machine.stats(memory_bytes=0).preemptions > 0


def test_resumed_equals_uninterrupted(model: Model, undisturbed: dict):
    """Behind one token, in the middle, and before the last one; all of them in one engine."""
    cuts = {
        f"{add.request_id[0]}{int(add.request_id[1:]) + 100 * cut}": (add, cut)  # with the same constraint
        for add in traffic(model)
        for cut in (1, 4, 7)
    }
    adds = [
        Add(name, add.prompt_ids, add.sampling, (Choice(0, undisturbed[add.request_id, 0][:cut]),))
        for name, (add, cut) in cuts.items()
    ]
    expected = {(name, 0): undisturbed[add.request_id, 0][cut:] for name, (add, cut) in cuts.items()}
    assert generate(adds, engine(model)) == expected


def test_two_choices_equal_two_seeds(model: Model):
    prompt = traffic(model)[3].prompt_ids
    both = generate([Add("n", prompt, Sampling(max_tokens=8, seed=8), (Choice(0), Choice(1)))], engine(model))
    for choice in (0, 1):
        alone = generate([Add("one", prompt, Sampling(max_tokens=8, seed=8 + choice))], engine(model))
        assert both["n", choice] == alone["one", 0]


def test_a_beginning_that_is_read_once_for_several_changes_no_bit(model: Model, monkeypatch: pytest.MonkeyPatch):
    """Log probabilities tell bits that ids do not."""
    monkeypatch.setattr("worker.engine.runner.SHARED_TOKENS", TILE_KEYS)
    prompt, sampling = traffic(model)[-1].prompt_ids, Sampling(max_tokens=4, seed=8, logprobs=1)
    prompt = (prompt * 3)[: TILE_KEYS + 9]
    steps: list[Step] = []
    noting = replace(model, forward=lambda step, cache: steps.append(step) or model.forward(step, cache))
    together = logprobs_of([Add("n", prompt, sampling, (Choice(0), Choice(1)))], engine(noting))
    assert any(step.prefixes is not None for step in steps)
    for choice in (0, 1):
        seed = Sampling(max_tokens=4, seed=8 + choice, logprobs=1)
        assert logprobs_of([Add("n", prompt, seed)], engine(model))["n", 0] == together["n", choice]


def logprobs_of(adds: list[Add], machine: Engine) -> dict[tuple[str, int], list[TokenLogprobs]]:
    for add in adds:
        machine.add(add)
    told: dict[tuple[str, int], list[TokenLogprobs]] = {}
    while machine.has_work:
        for output in machine.step():
            told.setdefault((output.request_id, output.choice), []).extend(output.logprobs or ())
    return told


def load_with_reference(name: str) -> tuple[Model, dict[str, NDArray[Any]]]:
    """One of `WITH_REFERENCE`, and what llama.cpp says of it."""
    path = WITH_REFERENCE[name]
    with np.load(path.with_suffix(".npz")) as reference:
        return load(path), dict(reference)


@pytest.fixture(scope="module", params=WITH_REFERENCE)
def with_reference(request: pytest.FixtureRequest) -> tuple[Model, dict[str, NDArray[Any]]]:
    return load_with_reference(request.param)


def test_greedy_ids_are_those_of_the_reference(with_reference: tuple[Model, dict]):
    model, reference = with_reference
    prompts = [key for key in reference if key.startswith("p") and key.endswith("_ids")]
    sampling = Sampling(max_tokens=reference["p0_greedy"].size, temperature=0.0)
    adds = [Add(key.removesuffix("_ids"), tuple(reference[key].tolist()), sampling) for key in prompts]
    ids = generate(adds, engine(model))
    for add in adds:
        expected, margin = reference[f"{add.request_id}_greedy"], reference[f"{add.request_id}_margin"]
        different = np.flatnonzero(np.array(ids[add.request_id, 0]) != expected)
        assert different.size == 0 or margin[different[0]] < NEAR_TIE
