"""Gated delta nets: linear attention with a state that forgets, and is corrected by what it would have answered.

Yang, Kautz & Hatamizadeh, "Gated Delta Networks", 2024; the layer around it as in Hugging Face's
``modeling_qwen3_next``.
A state is advanced token by token: the same tokens give the same bits, whatever steps they come in.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.batch import LayerState, Step
from kernels.reference.activation import sigmoid, silu, swiglu
from kernels.reference.convolution import causal_convolution, read_states
from kernels.reference.norm import normalise
from kernels.weights.parameters import DeltaNet

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]

L2_EPSILON = np.float32(1e-6)  # of the norms of queries and keys, no number of the file


def gated_delta_net(
    projected: Float32, net: DeltaNet[Float32], step: Step[Int32], *, out_state: LayerState[Float32], out: Float32
) -> None:
    """Convolution and SiLU of queries, keys and values, the delta rule, and a norm gated by SiLU(z).

    ``projected`` [T, net.projected_width]: queries, keys, values, z, beta and alpha side by side. Queries and keys have
    an L2 norm, queries are also divided by sqrt(key_dim). A value head writes with the rate sigmoid(beta), and before
    that its state decays by exp(net.decay * softplus(alpha + net.time_bias)). ``out`` [T, net.value_width].
    """
    num_tokens, rows = projected.shape[0], step.states
    assert rows is not None, "a step of a model with recurrent layers has states"
    ends = np.cumsum([net.channels, net.value_width, net.num_value_heads])
    inputs, z, beta, alpha = np.split(projected, ends, axis=1)
    mixed = np.empty(inputs.shape, np.float32)
    causal_convolution(inputs, net.taps, step, out_state=out_state, out=mixed)
    mixed = silu(mixed)
    key_width = net.num_key_heads * net.key_dim
    queries, keys = mixed[:, : 2 * key_width].reshape(num_tokens, 2, net.num_key_heads, net.key_dim).swapaxes(0, 1)
    values = mixed[:, 2 * key_width :].reshape(num_tokens, net.num_value_heads, net.value_dim)
    key_heads, states = np.array(net.key_heads), read_states(out_state.matrices, rows.sources)
    attended = delta_rule(
        _unit(queries)[:, key_heads] * np.float32(net.key_dim**-0.5),
        _unit(keys)[:, key_heads],
        values,
        decay=np.exp(net.decay * _softplus(alpha + net.time_bias)),
        rates=sigmoid(np.ascontiguousarray(beta)),
        query_starts=step.query_starts,
        states=states,
    )
    out_state.matrices[rows.slots] = states
    normed = normalise(net.norm, attended).reshape(num_tokens, net.value_width)
    swiglu(np.ascontiguousarray(z), normed, out=out)


def delta_rule(
    queries: Float32,
    keys: Float32,
    values: Float32,
    *,
    decay: Float32,
    rates: Float32,
    query_starts: Int32,
    states: Float32,
) -> Float32:
    """What ``states`` [S, heads, K, V] answer to each token's queries; they are advanced to the last token in place.

    For each token S = decay * S, then S += k (rate * (v - S^T k))^T, and the answer is S^T q. ``queries`` and ``keys``
    [T, heads, K], ``values`` [T, heads, V], ``decay`` and ``rates`` [T, heads]. Returns [T, heads, V]. Sequences go on
    together, a token each at a time, in matrix products of one shape.
    """
    answers = np.empty(values.shape, np.float32)
    counts = np.diff(query_starts)
    order = np.argsort(-counts, kind="stable")  # those that go on lie in front
    sorted_states, starts = states[order], query_starts[order]
    products = np.empty_like(sorted_states)
    for index in range(int(counts.max(initial=0))):
        tokens = starts[: np.count_nonzero(counts > index)] + index
        active = sorted_states[: tokens.size]
        active *= decay[tokens, :, None, None]
        key = keys[tokens]
        known = np.matmul(key[:, :, None], active)[:, :, 0]
        change = (values[tokens] - known) * rates[tokens, :, None]
        active += np.multiply(key[..., None], change[:, :, None], out=products[: tokens.size])
        answers[tokens] = np.matmul(queries[tokens][:, :, None], active)[:, :, 0]
    states[order] = sorted_states
    return answers


def _unit(x: Float32) -> Float32:
    """Vectors along the last axis, of length 1."""
    squares: Float32 = np.sum(x * x, axis=-1, keepdims=True)
    unit: Float32 = x / np.sqrt(squares + L2_EPSILON)
    return unit


def _softplus(x: Float32) -> Float32:
    """ln(1 + exp(x)), which does not overflow."""
    softplus: Float32 = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return softplus
