"""The engine process: one model on one device, token ids in and token ids out; and the commands about model files."""
