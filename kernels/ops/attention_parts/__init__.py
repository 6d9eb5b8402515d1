"""Parts of the op `kernels.ops.attention`."""
