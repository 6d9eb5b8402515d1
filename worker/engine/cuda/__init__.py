"""How the engine's steps reach a GPU without waiting for it: graphs, buffers that stay, and pinned host memory."""
