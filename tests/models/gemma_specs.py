"""The small models of Gemma's generations; see `tests.models.specs`."""

from __future__ import annotations

from gguf.constants import LlamaFileType

from tests.bench.gemma_specs import GEMMA_CHAT
from tests.bench.model_specs import ModelSpec, TensorSpec
from tests.models.layers import HIDDEN, gemma_layer, keys, matrix
from tests.models.vocabularies import character_level, gemma

GEMMA4_CHAT = GEMMA_CHAT.replace("<start_of_turn>", "<|turn>").replace("<end_of_turn>", "<turn|>")
GEMMA_IDS = {
    "bos": 2,
    "eos": 1,
    "unknown": 3,
    "padding": 0,
    "add_bos": True,
    "add_eos": False,
    "add_space_prefix": False,
}


def gemma2_q8_0() -> ModelSpec:
    """Gemma 2: norms after each block, soft caps, a sliding window of 16 on every other layer, heads of 256."""
    words = gemma("<start_of_turn>", "<end_of_turn>")
    tensors = [
        matrix("token_embd", "Q8_0", len(words.tokens), HIDDEN),
        *gemma_layer("blk.0", "Q8_0", 64, 256),
        *gemma_layer("blk.1", "Q8_0", 64, 256),
        TensorSpec("output_norm.weight", "F32", (HIDDEN,), 3.0, 0.1),
    ]
    settings = keys(64, 2, 1) | {
        "attention.key_length": 256,
        "attention.value_length": 256,
        "attention.sliding_window": 16,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 8.0,
    }
    return ModelSpec(
        "gemma2", "Small Gemma 2", LlamaFileType.MOSTLY_Q8_0, settings, words, GEMMA_IDS, GEMMA_CHAT, tensors
    )


def gemma3_q4_0() -> ModelSpec:
    """Gemma 3: norms of heads; of six layers five with a sliding window of 16 and a rotation of their own."""
    words = gemma("<start_of_turn>", "<end_of_turn>")
    tensors = [
        matrix("token_embd", "Q8_0", len(words.tokens), HIDDEN),
        *(tensor for number in range(6) for tensor in gemma_layer(f"blk.{number}", "Q4_0", 32, 256, head_norms=True)),
        TensorSpec("output_norm.weight", "F32", (HIDDEN,), 3.0, 0.1),
    ]
    settings = keys(32, 2, 1) | {
        "block_count": 6,
        "attention.key_length": 256,
        "attention.value_length": 256,
        "attention.sliding_window": 16,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 10000.0,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
    }
    return ModelSpec(
        "gemma3", "Small Gemma 3", LlamaFileType.MOSTLY_Q4_0, settings, words, GEMMA_IDS, GEMMA_CHAT, tensors
    )


def gemma4_q4_0() -> ModelSpec:
    """Gemma 4: a layer with heads of 256 and a window of 16, and one with heads of 512 whose keys are values, too."""
    words = character_level(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"), ("<|turn>", "<turn|>"))
    tensors = [
        matrix("token_embd", "Q8_0", len(words.tokens), HIDDEN),
        TensorSpec("rope_freqs.weight", "F32", (256,), mean=1.0, deviation=0.1),
        *gemma_layer("blk.0", "Q4_0", 64, 256, head_norms=True),
        *gemma_layer("blk.1", "Q4_0", 64, 512, head_norms=True, values=False),
        *(TensorSpec(f"blk.{number}.layer_output_scale.weight", "F32", (1,), mean=0.7) for number in range(2)),
        TensorSpec("output_norm.weight", "F32", (HIDDEN,), 3.0, 0.1),
    ]
    settings = keys(64, 2, 1) | {
        "attention.key_length": 512,
        "attention.value_length": 512,
        "attention.key_length_swa": 256,
        "attention.value_length_swa": 256,
        "attention.sliding_window": 16,
        "attention.sliding_window_pattern": [True, False],
        "attention.shared_kv_layers": 0,
        "embedding_length_per_layer_input": 0,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 10000.0,
        "rope.dimension_count": 512,
        "rope.dimension_count_swa": 256,
        "final_logit_softcapping": 9.0,
    }
    ids = GEMMA_IDS | {"mask": 4}
    return ModelSpec("gemma4", "Small Gemma 4", LlamaFileType.MOSTLY_Q4_0, settings, words, ids, GEMMA4_CHAT, tensors)


def gemma4_e_q8_0() -> ModelSpec:
    """Gemma 4 E: embeddings of each layer; of four layers the last two use the keys and values of the first two."""
    words = character_level(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"), ("<|turn>", "<turn|>"))
    vocab_size = len(words.tokens)
    tensors = [
        matrix("token_embd", "Q8_0", vocab_size, HIDDEN),
        TensorSpec("rope_freqs.weight", "F32", (64,), mean=1.0, deviation=0.1),
        TensorSpec("per_layer_token_embd.weight", "Q8_0", (vocab_size, 4 * HIDDEN), deviation=0.2),
        matrix("per_layer_model_proj", "F16", 4 * HIDDEN, HIDDEN),
        TensorSpec("per_layer_proj_norm.weight", "F32", (HIDDEN,), 1.0, 0.1),
        *(tensor for number in range(4) for tensor in _e_layer(f"blk.{number}", number)),
        TensorSpec("output_norm.weight", "F32", (HIDDEN,), 3.0, 0.1),
    ]
    settings = keys(64, 2, 1) | {
        "block_count": 4,
        "feed_forward_length": [32, 32, 64, 64],
        "attention.key_length": 128,
        "attention.value_length": 128,
        "attention.key_length_swa": 64,
        "attention.value_length_swa": 64,
        "attention.sliding_window": 16,
        "attention.sliding_window_pattern": [True, False, True, False],
        "attention.shared_kv_layers": 2,
        "embedding_length_per_layer_input": HIDDEN,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 10000.0,
        "rope.dimension_count": 128,
        "rope.dimension_count_swa": 64,
        "final_logit_softcapping": 9.0,
    }
    ids = GEMMA_IDS | {"mask": 4}
    return ModelSpec("gemma4", "Small Gemma 4 E", LlamaFileType.MOSTLY_Q8_0, settings, words, ids, GEMMA4_CHAT, tensors)


def _e_layer(name: str, number: int) -> list[TensorSpec]:
    return [
        *gemma_layer(name, "Q8_0", 32 if number < 2 else 64, 128 if number % 2 else 64, head_norms=True),
        matrix(f"{name}.inp_gate", "Q8_0", HIDDEN, HIDDEN),
        matrix(f"{name}.proj", "Q8_0", HIDDEN, HIDDEN),
        TensorSpec(f"{name}.post_norm.weight", "F32", (HIDDEN,), 2.0, 0.1),
        TensorSpec(f"{name}.layer_output_scale.weight", "F32", (1,), mean=0.7),
    ]


def gemma4_moe_q4_0() -> ModelSpec:
    """Gemma 4 with experts beside the dense block."""
    words = character_level(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"), ("<|turn>", "<turn|>"))
    tensors = [
        matrix("token_embd", "Q8_0", len(words.tokens), HIDDEN),
        TensorSpec("rope_freqs.weight", "F32", (64,), mean=1.0, deviation=0.1),
        *_mixture_layer("blk.0", 64, values=True),
        *_mixture_layer("blk.1", 128, values=False),
        TensorSpec("output_norm.weight", "F32", (HIDDEN,), 3.0, 0.1),
    ]
    settings = keys(64, 2, 1) | {
        "expert_count": 6,
        "expert_used_count": 2,
        "expert_feed_forward_length": 32,
        "attention.key_length": 128,
        "attention.value_length": 128,
        "attention.key_length_swa": 64,
        "attention.value_length_swa": 64,
        "attention.sliding_window": 16,
        "attention.sliding_window_pattern": [True, False],
        "attention.shared_kv_layers": 0,
        "embedding_length_per_layer_input": 0,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 10000.0,
        "rope.dimension_count": 128,
        "rope.dimension_count_swa": 64,
        "final_logit_softcapping": 9.0,
    }
    ids = GEMMA_IDS | {"mask": 4}
    return ModelSpec(
        "gemma4", "Small Gemma 4 MoE", LlamaFileType.MOSTLY_Q4_0, settings, words, ids, GEMMA4_CHAT, tensors
    )


def _mixture_layer(name: str, head_dim: int, *, values: bool) -> list[TensorSpec]:
    def own(part: str, *shape: int, mean: float = 1.0) -> TensorSpec:
        return TensorSpec(f"{name}.{part}", "F32", shape, mean, 0.1)

    return [
        *gemma_layer(name, "Q4_0", 64, head_dim, head_norms=True, values=values),
        own("post_ffw_norm_1.weight", HIDDEN),
        own("pre_ffw_norm_2.weight", HIDDEN),
        own("post_ffw_norm_2.weight", HIDDEN),
        own("layer_output_scale.weight", 1, mean=0.7),
        matrix(f"{name}.ffn_gate_inp", "F32", 6, HIDDEN, gain=10),
        own("ffn_gate_inp.scale", HIDDEN, mean=1.5),
        matrix(f"{name}.ffn_gate_up_exps", "Q4_0", 6, 64, HIDDEN),
        matrix(f"{name}.ffn_down_exps", "Q4_0", 6, HIDDEN, 32),
        own("ffn_down_exps.scale", 6),
    ]
