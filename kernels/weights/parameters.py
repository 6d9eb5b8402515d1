"""What the layers of a model are made of. Data only: the ops of either device work on them.

All are generic over the type of their arrays: NumPy's on the CPU, `kernels.runtime.device_array.DeviceArray` on CUDA.
What matrices become is each device's own (`kernels.devices.protocol.WeightStore`) and opaque to the models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels.weights.formats import Format

Pairing = Literal["neox", "normal"]
HeadOrder = Literal["tiled", "grouped"]

Array = TypeVar("Array", covariant=True)
Projection = TypeVar("Projection", covariant=True)
Matrix = TypeVar("Matrix", covariant=True)


class Weight(msgspec.Struct, frozen=True, eq=False):
    """A matrix as it is in the file, with its bias: what a device makes a projection of.

    ``data`` is uint8 [outputs, row_bytes], of stacked experts [experts, outputs, row_bytes], usually a view of a
    mapped file; ``bias`` float32 [outputs] or [experts, outputs]. ``name`` is the tensor's, for error messages.
    """

    name: str
    format: Format
    data: NDArray[np.uint8]
    bias: NDArray[np.float32] | None = None

    @property
    def num_outputs(self) -> int:
        """Rows of the matrix, of each expert."""
        num_outputs: int = self.data.shape[-2]
        return num_outputs

    @property
    def num_inputs(self) -> int:
        """Columns of the matrix."""
        row_bytes: int = self.data.shape[-1]
        return row_bytes // self.format.block_bytes * self.format.block_elements


class SharedWeights(msgspec.Struct, frozen=True, eq=False):
    """The feed-forward network beside a mixture's experts that every token goes through.

    What it makes of x is multiplied by sigmoid(``output_gate`` x) (Qwen2-MoE, 2024).
    """

    gate: Weight
    up: Weight
    down: Weight
    output_gate: NDArray[np.float32]  # [H]


class RmsNorm(msgspec.Struct, Generic[Array], frozen=True, eq=False):
    """x / sqrt(mean(x^2) + epsilon) * weight (Zhang & Sennrich, 2019)."""

    weight: Array  # [H]
    epsilon: float


class LayerNorm(msgspec.Struct, Generic[Array], frozen=True, eq=False):
    """(x - mean) / sqrt(variance + epsilon) * weight + bias (Ba et al., 2016)."""

    weight: Array  # [H]
    bias: Array  # [H]
    epsilon: float


Norm = RmsNorm[Array] | LayerNorm[Array]


class Clamp(msgspec.Struct, frozen=True):
    """What makes a SwiGLU a clamped one (gpt-oss): min(gate, limit) * sigmoid(alpha * that) * (clip(up) + 1)."""

    alpha: float
    limit: float


class QueryGrowth(msgspec.Struct, frozen=True):
    """Queries at position p are multiplied by 1 + rate * ln(1 + floor(p / interval)) (Mistral 3, Llama 4)."""

    rate: float
    interval: int


class Geglu(msgspec.Struct, frozen=True):
    """What makes experts' networks GEGLUs: gelu(gate) * up * scale (Gemma 4)."""

    scale: float


class Rope(msgspec.Struct, Generic[Array], frozen=True, eq=False):
    """How heads are rotated: pair ``i`` of a head by position * inverse_frequencies[set, i].

    ``pairing`` "neox" takes elements i and i + P as a pair, "normal" elements 2i and 2i + 1; elements from 2P on are
    left alone. Cosine and sine are multiplied by ``attention_factor``. A model may have two sets of frequencies
    (longrope): the second is for sequences of more than ``long_after`` tokens. With a ``query_growth`` whole heads are
    rotated.
    """

    inverse_frequencies: Array  # [sets, P]
    pairing: Pairing
    attention_factor: float = 1.0
    long_after: int | None = None
    query_growth: QueryGrowth | None = None


class Attention(msgspec.Struct, Generic[Array], frozen=True, eq=False):
    """How a layer attends: ``num_heads`` heads of ``head_dim`` that share ``num_kv_heads`` keys and values.

    A token sees the last ``window`` positions up to its own, or all of them if ``window`` is 0. ``sinks`` are logits
    that take part in the softmax and have no value (gpt-oss). ``head_norms`` are of single heads, of queries and of
    keys, before they are rotated (Qwen3); ``value_norm`` is of those of values (Gemma 4). With a ``softcap`` a scaled
    score s becomes softcap * tanh(s / softcap) (Gemma 2). A layer that ``shares_cache`` has queries only: its keys and
    values are what an earlier layer has written (Gemma 4 E).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    sinks: Array | None = None  # [num_heads] float32
    head_norms: tuple[RmsNorm[Array], RmsNorm[Array]] | None = None
    value_norm: RmsNorm[Array] | None = None
    softcap: float = 0.0
    shares_cache: bool = False

    @property
    def num_new_heads(self) -> int:
        """Heads of a token's keys, and of its values, that the layer makes itself."""
        return 0 if self.shares_cache else self.num_kv_heads

    @property
    def query_width(self) -> int:
        """Elements of a token's queries, all heads together."""
        return self.num_heads * self.head_dim

    @property
    def qkv_width(self) -> int:
        """Elements of what a layer projects of a token: queries, then keys and values that it makes."""
        return (self.num_heads + 2 * self.num_new_heads) * self.head_dim


class DenseLayer(msgspec.Struct, Generic[Array, Projection], frozen=True, eq=False):
    """A layer with rotated attention and a SwiGLU: all that it adds to the residual stream it adds as it is."""

    attention_norm: RmsNorm[Array]
    qkv: Projection
    attention: Attention[Array]
    output: Projection
    ffn_norm: RmsNorm[Array]
    gate_up: Projection
    down: Projection


class TokenEmbedding(msgspec.Struct, Generic[Matrix], frozen=True, eq=False):
    """Where tokens' embeddings are."""

    table: Matrix
    scale: float


class OutputHead(msgspec.Struct, Generic[Array, Projection], frozen=True, eq=False):
    """What comes after the layers: a norm, and the projection that gives logits."""

    norm: RmsNorm[Array]
    projection: Projection


class DenseModel(msgspec.Struct, Generic[Array, Matrix, Projection], frozen=True, eq=False):
    """A transformer of dense layers, from token ids to logits."""

    embedding: TokenEmbedding[Matrix]
    rope: Rope[Array]
    layers: Sequence[DenseLayer[Array, Projection]]
    head: OutputHead[Array, Projection]


class LayersSupport(NamedTuple):
    """What the op `decode_layers` can do with a `DenseModel`."""

    obstacle: str | None
    """Why nothing, in words in which "it" is its kernel; None: it runs such a model."""
    contexts: Mapping[int, int] = {}
    """Of how many sequences with a token each it runs steps, and up to which context: longer ones are faster layer by
    layer."""
    words: NDArray[np.float32] = np.empty(0, np.float32)
    """What it needs in device memory, the same again when it is done; empty: it does not draw (`Step.greedy`)."""


class DeltaNet(msgspec.Struct, Generic[Array], frozen=True, eq=False):
    """A gated delta net (Yang et al., 2024): ``num_value_heads``, each with a state of [key_dim, value_dim].

    Each head of queries and keys serves as many value heads: if these are "tiled" the head j serves j, j +
    num_key_heads ..., if they are "grouped" neighbours. What goes into the convolution are queries, keys and values;
    ``taps`` are its weights, the last those of the current token.
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    head_order: HeadOrder
    taps: Array  # [taps, channels]
    decay: Array  # [num_value_heads], negative
    time_bias: Array  # [num_value_heads]
    norm: RmsNorm[Array]  # of a head's value_dim elements

    @property
    def key_heads(self) -> list[int]:
        """Which head of queries and keys each value head takes."""
        group = self.num_value_heads // self.num_key_heads
        tiled = self.head_order == "tiled"
        return [head % self.num_key_heads if tiled else head // group for head in range(self.num_value_heads)]

    @property
    def value_width(self) -> int:
        """Elements of a token's values, all heads together."""
        return self.num_value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Elements of a token's queries, keys and values: what is convolved."""
        return 2 * self.num_key_heads * self.key_dim + self.value_width

    @property
    def projected_width(self) -> int:
        """Elements of what a layer projects of a token: what is convolved, a gate, and two numbers a value head."""
        return self.channels + self.value_width + 2 * self.num_value_heads
