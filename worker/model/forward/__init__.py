"""What forward passes of all families share: their arrays, and which tokens and layers go through them."""
