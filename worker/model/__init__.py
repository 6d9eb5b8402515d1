"""From a GGUF file to a model on a device: metadata, weights, model families, the KV cache."""
