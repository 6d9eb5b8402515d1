"""How the demo's model was made: its corpus, its training, its conversion to GGUF and its evaluation."""
