"""One step's work as flat arrays: NumPy arrays on the CPU, views of fixed device buffers on CUDA.

A step of which every sequence only decodes leaves on the device all that the next one needs: the op `begin_decode`
goes on from there (`kernels.decode_rows`). Any other step goes up whole (`pack`), with token ids that the host does not
know yet given by the draw that makes them (the op `resolve_tokens`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from kernels.runtime.cuda_struct import CudaStruct, Float32, Int32, UInt64
from kernels.runtime.device_array import DeviceArray

AnyArray = NDArray[Any] | DeviceArray
"""An array of whatever device, contiguous."""
HostIds = NDArray[np.int32] | None
"""Page-locked host memory into which a draw puts its ids, too; None: it does not."""
Array = TypeVar("Array", bound=AnyArray, covariant=True)
"""What all arrays of a step are: those of one device."""
Rows = TypeVar("Rows", bound=AnyArray)  # of `first`
Memory = TypeVar("Memory", NDArray[Any], DeviceArray)  # of `view`
Number = TypeVar("Number", int, NDArray[np.int32])  # of `encode_draw` and `encode_only_id`

_ALIGNMENT = 16


class SamplingRow(CudaStruct, source="sampling/sampling_draw"):
    """How the tokens of one sequence are drawn, from its first to its last; see `kernels.reference.sampling.sample`.

    Fields that are parameters of requests have their names. Only the ops of sampling look at them; all else moves rows
    of `SAMPLING_ROW` by their size.
    """

    key: UInt64  # (seed + choice) mod 2**64
    temperature: Float32
    top_k: Int32
    top_p: Float32
    min_p: Float32
    repetition_penalty: Float32
    presence_penalty: Float32
    frequency_penalty: Float32
    min_tokens: Int32
    logprobs: Int32  # -1: none are wanted
    num_biases: Int32  # in the sequence's row of `LogitEdits`
    num_banned: Int32  # tokens that cannot be drawn before there are `min_tokens`; they come behind the biases
    edit_row: Int32  # the sequence's row of `LogitEdits`, -1: its logits are not edited


def struct_dtype(struct: type[CudaStruct]) -> np.dtype[Any]:
    """What NumPy sees in an array of such structs."""
    fields = struct.layout.fields
    return np.dtype(
        {
            "names": [field.name for field in fields],
            "formats": [field.type.code for field in fields],
            "offsets": [field.offset for field in fields],
            "itemsize": struct.layout.num_bytes,
        }
    )


SAMPLING_ROW = struct_dtype(SamplingRow)

GREEDY_ROW = SamplingRow(
    key=0,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    min_tokens=0,
    logprobs=-1,
    num_biases=0,
    num_banned=0,
    edit_row=-1,
)
"""Takes the most probable token; nothing is edited or reported."""

IN_PROMPT = 1 << 15
"""The bit of a count in `LogitEdits` that says that the token is in the prompt; the others count it in the output."""


class PreviousDraw(NamedTuple):
    """A token whose id only the device knows: the one that draw number ``draw`` of the previous step gave."""

    draw: int


def encode_draw(draw: Number) -> Number:
    """The negative number that stands for the id that draw number ``draw`` of the previous step gave."""
    return -1 - draw


decode_draw = encode_draw  # -1 - x is its own inverse; cuda/decode_step/decode_step.cu has it under the same name


ANY_ID = -1
"""In the place of a mask's number: no mask."""


def encode_only_id(token_id: Number) -> Number:
    """The number that stands for a mask that allows one id, or nothing if there is no such id."""
    return -2 - token_id


decode_only_id = encode_only_id  # -2 - x is its own inverse; cuda/sampling/sampling.cu has it, too


def encode_token(token: int | PreviousDraw) -> int:
    """A token as the device takes it: its id, or `encode_draw` of what the previous step drew."""
    return encode_draw(token.draw) if isinstance(token, PreviousDraw) else token


class StateRows(msgspec.Struct, Generic[Array], frozen=True, eq=False):
    """Where the states of a step's S sequences are, in a model with recurrent layers.

    A state slot holds the state of one sequence after some token, of all these layers. A source may be the slot of
    another sequence of the step, and several may have the same one, but no slot is written that another sequence reads.
    """

    slots: Array  # [S] int32, where each sequence's state after the step goes; -1: padding
    sources: Array  # [S] int32, where its state before the step is: its own slot or another one; -1: it has none yet

    def first(self, count: int) -> StateRows[Array]:
        """Those of the first ``count`` sequences."""
        return StateRows(first(self.slots, count), first(self.sources, count))


SHARED_TOKENS = 256
"""What sequences share of their beginning is attended to together in units of so many tokens on the CPU."""
SHORT_CHUNK = 128  # tokens: of a sequence of more attention is prefill work (`kernels.ops.attention_plan`)


class PrefixGroups(msgspec.Struct, Generic[Array], frozen=True, eq=False):
    """Which of a step's S sequences have the same first blocks in their tables, so that these need be read only once.

    A row of ``groups`` is (first member, number of members, number of tokens that they share); members are sequences of
    one token in the step, at least two, and a sequence is in at most one group. The tokens are all before the step's
    own, and fill tiles of 64 keys. Results are the same bit for bit, whatever groups there are.
    """

    groups: Array  # [G, 3] int32; those that are not in use are zeros
    members: Array  # [S] int32: rows of the arrays of sequences, group after group


class GreedyDraw(NamedTuple, Generic[Array]):
    """Where the ids of the largest logits go: of equals the lowest, -1 where logits are not finite."""

    ids: Array  # [R] int32
    host_ids: HostIds = None  # [R], gets them, too
    output_positions: Array | None = None
    """[R] int64. If there are some, the step's arrays are those of the step before, which drew ``ids``, and the forward
    pass begins with what `begin_decode` does where there are no updates."""


class Step(msgspec.Struct, Generic[Array], frozen=True, eq=False):
    """The tokens of one step, sequence after sequence; prefill chunk and decode differ only in their count.

    ``T`` tokens of ``S`` sequences; sequence ``s`` owns tokens ``query_starts[s]:query_starts[s + 1]``, its last
    ones: after the step its cache holds ``context_lengths[s]`` tokens, in the blocks of ``block_tables[s]``. All int32.

    A CUDA graph runs a step padded to its bucket, R = T = S: padded rows have token id 0, position -1, KV slot -1 and
    context and sequence length 0.
    """

    token_ids: Array  # [T]
    positions: Array  # [T] position in the sequence
    slots: Array  # [T] KV slots, where the tokens' K and V go: block_id * block_tokens + offset
    sequence_rows: Array  # [T] which row of the arrays of sequences below is the token's
    query_starts: Array  # [S + 1]
    context_lengths: Array  # [S]
    sequence_lengths: Array  # [S] tokens that are known of the sequence: those computed and those still to come
    block_tables: Array  # [S, max_blocks], unused entries are not read
    logit_rows: Array  # [R] tokens whose next-token logits are wanted
    states: StateRows[Array] | None = None  # None: the model has no recurrent layers
    prefixes: PrefixGroups[Array] | None = None  # None: nothing is attended to together
    has_short_chunks: bool = True  # some sequences may have at most `SHORT_CHUNK` tokens
    has_long_context: bool = False  # one of few sequences, or the mean of many, is so long that other ways are faster
    greedy: GreedyDraw[Array] | None = None  # the forward pass draws, too (`Model.draws_in_one_kernel`)

    def arrays(self) -> dict[str, Array]:
        """All arrays but those of `states`, `prefixes` and `greedy`, by name."""
        others = "states", "prefixes", "has_short_chunks", "has_long_context", "greedy"
        return {name: getattr(self, name) for name in self.__struct_fields__ if name not in others}


class LogitEdits(msgspec.Struct, Generic[Array], frozen=True, eq=False):
    """What changes the logits of up to ``N`` sequences before a draw; see `kernels.logit_edits`."""

    counts: Array  # [N, vocab, rounded up to a multiple of 8] uint16, by token id; see `IN_PROMPT`
    biases: Array  # [N, max_biases] TOKEN_BIAS: biases, each token once, then tokens that are banned for a while


class SamplingParams(msgspec.Struct, Generic[Array], frozen=True, eq=False):
    """How R tokens are drawn; see `kernels.reference.sampling.sample`."""

    rows: Array  # [R] SAMPLING_ROW
    output_positions: Array  # [R] int64
    edits: LogitEdits[Array] | None = None  # None: no row has an `edit_row`

    def first(self, count: int) -> SamplingParams[Array]:
        """The first ``count`` of them."""
        return SamplingParams(first(self.rows, count), first(self.output_positions, count), self.edits)


class CacheScales(NamedTuple, Generic[Array]):
    """What the codes of a head of a token are multiplied by; one for each, in blocks as the codes are."""

    keys: Array
    values: Array


class LayerCache(NamedTuple, Generic[Array]):
    """K and V of a layer for all sequences, in blocks; the layout is the device's (`Device.layer_cache`)."""

    keys: Array
    values: Array
    scales: CacheScales[Array] | None = None  # None: keys and values are numbers, else codes

    def arrays(self) -> tuple[Array, ...]:
        """All arrays of the layer."""
        return (self.keys, self.values, *(self.scales or ()))


class LayerState(NamedTuple, Generic[Array]):
    """What a recurrent layer keeps of all sequences, by state slot; float32 on every device."""

    inputs: Array  # [slots, taps - 1, channels]: the last inputs of its convolution
    matrices: Array
    """[slots, heads, key_dim, value_dim]: a delta net's, on CUDA with the last two the other way round; no heads in a
    layer that only has a convolution."""


class Allocator(Protocol[Array]):
    """Gives out memory that stays: `kernels.runtime.memory.Arena`."""

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """An array with arbitrary contents."""


def pack(arrays: Mapping[str, NDArray[Any]], staging: NDArray[np.uint8]) -> tuple[int, dict[str, int]]:
    """Write ``arrays`` into ``staging`` one after the other; the number of bytes, and where each one starts."""
    offsets: dict[str, int] = {}
    end = 0
    for name, array in arrays.items():
        offsets[name] = end
        staging[end : end + array.nbytes].view(array.dtype)[:] = array.ravel()
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    return end, offsets


def packed_bytes(sizes: Iterable[int]) -> int:
    """Bytes that `pack` needs at most for arrays of these sizes in bytes."""
    return sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)


def view(memory: Memory, offset: int, shape: tuple[int, ...], dtype: DTypeLike) -> Memory:
    """An array inside of ``memory``, ``offset`` bytes from its start."""
    if isinstance(memory, np.ndarray):
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        return memory.reshape(-1).view(np.uint8)[offset : offset + num_bytes].view(dtype).reshape(shape)
    return DeviceArray(memory.pointer + offset, shape, np.dtype(dtype))


def first(array: Rows, count: int) -> Rows:
    """The first ``count`` rows."""
    return cast(Rows, array[:count] if isinstance(array, np.ndarray) else array.first(count))


def behind(array: Rows, count: int) -> Rows:
    """All rows but the first ``count``."""
    return cast(Rows, array[count:] if isinstance(array, np.ndarray) else array.rows(count, array.shape[0]))
