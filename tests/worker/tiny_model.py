"""A qwen2 model of a few kilobytes with random weights, written when a test needs a real file."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

VOCAB_SIZE, CONTEXT_LENGTH = 96, 128
HIDDEN, INTERMEDIATE, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, NUM_LAYERS = 32, 64, 2, 1, 16, 2


def write_tiny_model(path: Path) -> Path:
    """Write the model to ``path``; every call writes the same bytes."""
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(NUM_LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)

    def add(name: str, *shape: int) -> None:
        values = generator.normal(0, 0.2, shape) + ("norm" in name)
        writer.add_tensor(name, values.astype(np.float32))

    add("token_embd.weight", VOCAB_SIZE, HIDDEN)
    for layer in range(NUM_LAYERS):
        add(f"blk.{layer}.attn_norm.weight", HIDDEN)
        for part, heads in (("q", NUM_HEADS), ("k", NUM_KV_HEADS), ("v", NUM_KV_HEADS)):
            add(f"blk.{layer}.attn_{part}.weight", heads * HEAD_DIM, HIDDEN)
            add(f"blk.{layer}.attn_{part}.bias", heads * HEAD_DIM)
        add(f"blk.{layer}.attn_output.weight", HIDDEN, NUM_HEADS * HEAD_DIM)
        add(f"blk.{layer}.ffn_norm.weight", HIDDEN)
        add(f"blk.{layer}.ffn_gate.weight", INTERMEDIATE, HIDDEN)
        add(f"blk.{layer}.ffn_up.weight", INTERMEDIATE, HIDDEN)
        add(f"blk.{layer}.ffn_down.weight", HIDDEN, INTERMEDIATE)
    add("output_norm.weight", HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
