"""Write a GGUF with the tensor names, types, shapes and metadata of a published model, and seeded random weights.

    python -m tests.bench.make_model NAME OUT.gguf [--layers N]

The names are those of `MODELS`: qwen2.5-0.5b, phi-3-mini-q4_k_m, phi-3-mini-q4_0, gpt-oss-20b, llama-3.1-8b ...
For measuring speed and load time where no real weights can be had. What such a model writes means nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from kernels.weights.formats import FORMATS
from tests.bench.gemma_specs import gemma3
from tests.bench.hybrid_specs import qwen35, qwen35moe
from tests.bench.llama_specs import llama3, qwen3moe
from tests.bench.model_specs import ModelSpec, TensorSpec, gpt_oss, phi3, qwen2
from tests.bench.random_blocks import random_blocks

MODELS: dict[str, tuple[int, Callable[[int], ModelSpec]]] = {  # name -> layers of the real model, its description
    "qwen2.5-0.5b": (
        24,
        lambda layers: qwen2(layers, hidden=896, ffn=4864, heads=14, kv_heads=2, num_regular=151643),
    ),
    "phi-3-mini-q4_k_m": (
        32,
        lambda layers: phi3(layers, hidden=3072, ffn=8192, heads=32, num_regular=32000, window=2047, q4_0=False),
    ),
    "phi-3-mini-q4_0": (
        32,
        lambda layers: phi3(layers, hidden=3072, ffn=8192, heads=32, num_regular=32000, window=2047, q4_0=True),
    ),
    "gpt-oss-20b": (
        24,
        lambda layers: gpt_oss(
            layers, hidden=2880, ffn=2880, heads=64, kv_heads=8, experts=32, used=4, num_regular=199998
        ),
    ),
    "llama-3.1-8b": (
        32,
        lambda layers: llama3(layers, hidden=4096, ffn=14336, heads=32, kv_heads=8, num_regular=128000),
    ),
    "gemma-3-12b": (
        48,
        lambda layers: gemma3(layers, hidden=3840, ffn=15360, heads=16, kv_heads=8, num_regular=262144),
    ),
    "qwen3-30b-a3b": (
        48,
        lambda layers: qwen3moe(
            layers, hidden=2048, ffn=768, heads=32, kv_heads=4, experts=128, used=8, num_regular=151643
        ),
    ),
    "qwen3.5-9b": (
        32,
        lambda layers: qwen35(layers, hidden=4096, ffn=12288, heads=16, kv_heads=4, num_regular=248044),
    ),
    "qwen3.6-35b-a3b": (
        40,
        lambda layers: qwen35moe(
            layers, hidden=2048, ffn=512, heads=16, kv_heads=2, experts=256, used=8, num_regular=248044
        ),
    ),
}


def tensor_blocks(tensor: TensorSpec, rng: np.random.Generator) -> np.ndarray:
    """Random contents of a tensor, uint8 [..., row_bytes]."""
    blocks = random_blocks(FORMATS[tensor.format], tensor.shape, tensor.deviation, rng)
    if tensor.mean:
        blocks.view(np.float32)[:] += np.float32(tensor.mean)
    return blocks


def write_model(
    spec: ModelSpec,
    path: Path,
    *,
    seed: int = 0,
    make_blocks: Callable[[TensorSpec, np.random.Generator], np.ndarray] = tensor_blocks,
) -> None:
    """Write ``spec`` to ``path``, one tensor in memory at a time; the same seed gives the same file."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, spec.architecture)
    _add_metadata(writer, spec)
    for tensor in spec.tensors:
        kind = GGMLQuantizationType[tensor.format]
        block_elements, block_bytes = GGML_QUANT_SIZES[kind]
        byte_shape = (*tensor.shape[:-1], tensor.shape[-1] // block_elements * block_bytes)
        num_bytes = int(np.prod(byte_shape))
        writer.add_tensor_info(tensor.name, byte_shape, np.dtype(np.uint8), num_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in spec.tensors:
        writer.write_tensor_data(make_blocks(tensor, rng))
    writer.close()


def _add_metadata(writer: gguf.GGUFWriter, spec: ModelSpec) -> None:
    writer.add_type("model")
    writer.add_name(spec.name)
    writer.add_file_type(spec.file_type)
    writer.add_quantization_version(2)
    for key, value in spec.keys.items():
        full_key = f"{spec.architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(full_key, value)
        elif isinstance(value, float):
            writer.add_float32(full_key, value)
        elif isinstance(value, list):
            writer.add_array(full_key, value)
        elif isinstance(value, bool):
            writer.add_bool(full_key, value)
        else:
            writer.add_uint32(full_key, value)
    vocabulary = spec.vocabulary
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    for name, token_id in spec.token_ids.items():
        if name == "add_space_prefix":
            writer.add_add_space_prefix(bool(token_id))
        elif isinstance(token_id, bool):
            writer.add_bool(f"tokenizer.ggml.{name}_token", token_id)
        else:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token_id)
    writer.add_chat_template(spec.chat_template)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.make_model", description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than the real model has")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    num_layers, describe = MODELS[arguments.model]
    write_model(describe(arguments.layers or num_layers), arguments.out, seed=arguments.seed)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
