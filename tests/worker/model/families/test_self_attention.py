"""worker.model.families.self_attention: what of a layer's tensors and numbers makes its attention."""

from __future__ import annotations

import numpy as np

from kernels.devices.open import open_device
from tests.models.files import SMALL
from worker.model.families.self_attention import load_attention
from worker.model.gguf import open_gguf
from worker.model.registry import read_model_config
from worker.model.weights import RowPart, Weights


def test_queries_may_be_some_of_the_rows_of_their_tensor() -> None:
    gguf, device = open_gguf(SMALL["qwen35-q4_k_m"]), open_device("cpu")
    config, weights = read_model_config(gguf), Weights(gguf, device).layer(1)
    width = config.head_dim
    own = load_attention(config, config.layers[1], weights, RowPart(0, width, 2 * width))
    queries, keys, values = (projection.matrix for projection in own.qkv)
    rows = gguf.tensors["blk.1.attn_q.weight"].data.reshape(config.num_heads, 2, width, -1)
    np.testing.assert_array_equal(queries.data, rows[:, 0].reshape(config.num_heads * width, -1))
    assert np.shares_memory(keys.data, gguf.tensors["blk.1.attn_k.weight"].data)
    assert np.shares_memory(values.data, gguf.tensors["blk.1.attn_v.weight"].data)
    attention = own.attention
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (4, 2, width)
    assert (attention.scale, attention.window, attention.shares_cache) == (width**-0.5, 0, False)
    assert attention.head_norms is not None
    for norm, name in zip(attention.head_norms, ("attn_q_norm", "attn_k_norm"), strict=True):
        np.testing.assert_array_equal(norm.weight, gguf.tensors[f"blk.1.{name}.weight"].data.view(np.float32))
