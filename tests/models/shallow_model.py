"""The model that ships, cut down to a corner of its first layer: for tests that do not care what a model says.

It has the same vocabulary and context, and the same chat template or none; most of what a step of it takes is the same
for any model.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

TEMPLATE = "tokenizer.chat_template"
WIDTH = 64
"""Of the residual stream and of the one head, which is as wide as those of the whole model."""
SIZES = {
    "qwen2.block_count": 1,
    "qwen2.embedding_length": WIDTH,
    "qwen2.feed_forward_length": 2 * WIDTH,
    "qwen2.attention.head_count": 1,
    "qwen2.attention.head_count_kv": 1,
}
ROWS = {"token_embd.weight": None, "blk.0.ffn_gate.weight": 2 * WIDTH, "blk.0.ffn_up.weight": 2 * WIDTH}
"""How many outputs are left where it is not `WIDTH`."""
COLUMNS = {"blk.0.ffn_down.weight": 2 * WIDTH}
LOUDER = {"blk.0.attn_output.weight": 20.0, "blk.0.ffn_down.weight": 20.0}
"""By what the layer's outputs are multiplied: else the likeliest token would always be the last one once more."""


def write_shallow_model(source: Path, path: Path, *, template: bool) -> Path:
    """Write what is left of ``source`` to ``path``, with its chat ``template``; every call writes the same bytes."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        if field.name == TEMPLATE and not template:
            continue
        value = SIZES.get(field.name, field.contents())
        element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], element)
    for tensor in reader.tensors:
        if tensor.name.startswith("blk.") and not tensor.name.startswith("blk.0."):
            continue
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(tensor.name, np.array(tensor.data[:WIDTH]))
            continue
        rows, columns = ROWS.get(tensor.name, WIDTH), COLUMNS.get(tensor.name, WIDTH)
        values = gguf.quants.dequantize(tensor.data[:rows], tensor.tensor_type)[:, :columns]
        values = values * np.float32(LOUDER.get(tensor.name, 1.0))
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
