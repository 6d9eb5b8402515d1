"""Who holds which part of the caches that a model reads, and which parts can be shared: bookkeeping without arrays."""
