"""The engine: continuous batching of token sequences over a paged KV cache.

`engine.Engine` is what others use: add, abort, step. A step is planned by `scheduler` (which sequences get how many
tokens), run by `runner` (the batch through the model, then sampling) and committed. `sequence`, `cache`
and `scheduler` are bookkeeping in plain Python and know neither arrays nor models.

A token is drawn in this order: logit bias; repetition, presence and frequency penalty; stop ids banned before
``min_tokens``; what the sequence's `token_constraint` does not allow; here log probabilities are taken; temperature;
the filters in the order of `kernels.reference.sampling`; the draw, with noise that is a function of (seed + choice,
index in the output, token id). A constraint may then put another token in the place of the one that was drawn.
"""
