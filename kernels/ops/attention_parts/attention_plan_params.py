"""What attention_plan is given, and what it makes."""

from __future__ import annotations

from kernels.ops.attention_parts.prefix_attention import PrefixPlanParams, PrefixStates
from kernels.runtime.cuda_struct import CudaStruct, Int32, Pointer


class Item(CudaStruct, source="attention/attention_plan"):
    """What a block does for each KV head; attention_plan.cuh says more."""

    sequence: Int32
    first_token: Int32
    first_position: Int32
    first_row: Int32
    num_rows: Int32
    num_keys: Int32
    first_tile: Int32
    end_tile: Int32
    num_items: Int32
    first_split: Int32
    end_split: Int32
    partial_row: Int32
    arrivals: Int32
    prefix: PrefixStates


class PlanCounts(CudaStruct, source="attention/attention_plan"):
    """How many items a plan has."""

    decode_items: Int32
    prefill_items: Int32
    tokens: Int32  # without padding
    prefix_items: Int32
    prefill_counter: Int32  # of work that blocks of attention_prefill_hopper have taken, 0 before and after
    prefill_sms: Int32  # that these are on: attention_decode, which overlaps them, begins on the others


class DecodePlanParams(CudaStruct, source="attention/attention_plan"):
    """How attention_plan lists decode items."""

    short_rows: Int32  # sequences of so many query rows are decode work too
    wanted_items: Int32  # into about so many items it is divided when there are few sequences
    partial_rows: Int32  # rows of the workspace for divided items
    columns: Int32  # sequences whose blocks make about one for each SM


class PrefillPlanParams(CudaStruct, source="attention/attention_plan"):
    """How attention_plan lists prefill items."""

    rows: Int32  # query rows of an item, 0: everything is a decode item
    classes: Int32  # of items by their number of tiles: those of a class come one after the other
    num_sms: Int32


class AttentionPlanParams(CudaStruct, source="attention/attention_plan"):
    """What attention_plan is given."""

    query_starts: Pointer  # [num_sequences + 1] int32
    context_lengths: Pointer  # [num_sequences] int32
    counts: Pointer  # [1] PlanCounts
    decode_items: Pointer  # [as many as the shapes allow] Item
    prefill_items: Pointer  # [as many as the shapes allow] Item
    arrivals: Pointer  # [num_arrivals] int32, zeroed there
    num_sequences: Int32
    group: Int32  # query heads per KV head
    window: Int32
    num_arrivals: Int32
    decode_plan: DecodePlanParams
    prefill: PrefillPlanParams
    prefix: PrefixPlanParams
