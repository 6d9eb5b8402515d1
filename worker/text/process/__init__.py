"""A process of its own for what may take long or much memory: rendering chat templates, tokenising long texts."""
