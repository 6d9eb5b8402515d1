"""Products of one to four tokens with the experts that a router has chosen for each."""

from __future__ import annotations

from kernels.ops.matmul import launch_small_batch
from kernels.ops.matmul_params import Product, RoutedShared, RoutingParams
from kernels.ops.matmul_tuning import SmallBatchShape, small_batch_shape
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context


def multiply_routed(
    context: Context,
    product: Product,
    router_logits: DeviceArray,
    experts: DeviceArray,
    *,
    is_first: bool,
    shared: RoutedShared | None = None,
) -> None:
    """One to four tokens, each through the experts that ``router_logits`` [T, experts] prefer.

    The kernel launched before writes the logits or, if the product is not the first one, nothing but ``x``. The first
    one writes to ``experts`` [T, num_used] int32 which they are.
    The product's ``out`` is [T * num_used, outputs] by rank; its ``x`` has a row for each token or for each of those.
    With one token and ``shared``, that expert's gates and up projections are one more rank.
    """
    (num_tokens, num_experts), num_used = router_logits.shape, experts.shape[1]
    num_ranks = num_used + (shared is not None)
    shape = small_batch_shape(context.gpu, product.matrix, 1, num_products=num_tokens * num_ranks)
    routing = RoutingParams(
        router_logits=router_logits.pointer,
        experts=experts.pointer,
        shared_packed=shared.gate_up.packed.pointer if shared else 0,
        shares=shared.shares.pointer if shared else 0,
        num_experts=num_experts,
        num_used=num_used,
        x_row_of_pair=product.x.shape[0] == product.out.shape[0],
        is_first=is_first,
    )
    grid = shape.num_blocks, num_ranks, num_tokens
    launch_small_batch(context, "matmul_gemv_routed", grid, shape, product, routing)


def multiply_summed(
    context: Context,
    product: Product,
    router_logits: DeviceArray,
    experts: DeviceArray,
    shape: SmallBatchShape,
    shared: RoutedShared | None = None,
) -> None:
    """The last product of one token's ``experts`` [1, num_used], and their sum, weighted as the ``router_logits`` say.

    It is added to the product's ``out`` [1, outputs] float32; its ``x`` has a row for each expert, by rank, and last
    that of ``shared``. The kernels launched before it write nothing but ``x`` and ``experts``, which were -1 before.
    """
    routing = RoutingParams(
        router_logits=router_logits.pointer,
        experts=experts.pointer,
        shared_packed=shared.down.packed.pointer if shared else 0,
        shares=0,
        num_experts=router_logits.shape[1],
        num_used=experts.shape[1],
        x_row_of_pair=True,
        is_first=False,
    )
    launch_small_batch(context, "matmul_gemv_summed", (shape.num_blocks, 1, 1), shape, product, routing)
