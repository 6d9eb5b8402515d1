"""What a person runs by hand on a model file, without a queue: inspect, tokenize, render, logits, bench."""
