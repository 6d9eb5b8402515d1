"""Model families: one file each, from which tensors to read to the ops of a forward pass."""
