"""What published files of Gemma 3 hold, at any size; see `tests.bench.model_specs`."""

from __future__ import annotations

from tests.bench.model_specs import ModelSpec, TensorSpec, more_bits, norm, weight
from tests.bench.vocabularies import sentencepiece

HEAD_DIM = 256
GEMMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message.role == 'assistant' else message.role }}\n{{ message.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def gemma3(num_layers: int, *, hidden: int, ffn: int, heads: int, kv_heads: int, num_regular: int) -> ModelSpec:
    """Gemma 3 in Q4_K_M; the embedding is the head, and Q6_K."""
    vocabulary = sentencepiece(num_regular, ["<start_of_turn>", "<end_of_turn>"], 62)
    tensors = [weight("token_embd", "Q6_K", len(vocabulary.tokens), hidden), norm("output_norm", hidden)]
    for layer in range(num_layers):
        tensors += _layer(f"blk.{layer}", more_bits(layer, num_layers), hidden, ffn, heads, kv_heads)
    keys = {
        "block_count": num_layers,
        "context_length": 131072,
        "embedding_length": hidden,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": 1024,
        "rope.freq_base": 1e6,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
    }
    ids = {"bos": 1, "eos": 2, "unknown": 0, "padding": 0, "add_bos": True, "add_eos": False}
    return ModelSpec("gemma3", "Synthetic Gemma 3", 15, keys, vocabulary, ids, GEMMA_CHAT, tensors)


def _layer(blk: str, rich: bool, hidden: int, ffn: int, heads: int, kv_heads: int) -> list[TensorSpec]:
    values = "Q6_K" if rich else "Q4_K"
    return [
        norm(f"{blk}.attn_norm", hidden),
        weight(f"{blk}.attn_q", "Q4_K", heads * HEAD_DIM, hidden),
        weight(f"{blk}.attn_k", "Q4_K", kv_heads * HEAD_DIM, hidden),
        weight(f"{blk}.attn_v", values, kv_heads * HEAD_DIM, hidden),
        norm(f"{blk}.attn_q_norm", HEAD_DIM),
        norm(f"{blk}.attn_k_norm", HEAD_DIM),
        weight(f"{blk}.attn_output", "Q4_K", hidden, heads * HEAD_DIM),
        norm(f"{blk}.post_attention_norm", hidden),
        norm(f"{blk}.ffn_norm", hidden),
        weight(f"{blk}.ffn_gate", "Q4_K", ffn, hidden),
        weight(f"{blk}.ffn_up", "Q4_K", ffn, hidden),
        weight(f"{blk}.ffn_down", values, hidden, ffn),
        norm(f"{blk}.post_ffw_norm", hidden),
    ]
