"""The NumPy twin of every op: the oracle of the CUDA kernels, and the whole of the CPU device.

Signatures are those of the CUDA ops: arrays in, ``out`` arrays last and by name, nothing returned that a kernel would
write. A row's result never depends on the other rows of a call.
"""

from kernels.reference.attention import paged_attention, plan_attention, rope_attention
from kernels.reference.decode_step import begin_decode, resolve_tokens
from kernels.reference.embedding import embed, embed_positions
from kernels.reference.matmul import linear, linear_residual
from kernels.reference.moe import norm_moe_residual
from kernels.reference.norm import norm_gelu, norm_head, norm_linear, norm_swiglu
from kernels.reference.rope import rope_write, rotation
from kernels.reference.sampling import adjust_logits, log_probabilities, sample, top_log_probabilities

__all__ = [
    "adjust_logits",
    "begin_decode",
    "embed",
    "embed_positions",
    "linear",
    "linear_residual",
    "log_probabilities",
    "norm_gelu",
    "norm_head",
    "norm_linear",
    "norm_moe_residual",
    "norm_swiglu",
    "paged_attention",
    "plan_attention",
    "resolve_tokens",
    "rope_attention",
    "rope_write",
    "rotation",
    "sample",
    "top_log_probabilities",
]
