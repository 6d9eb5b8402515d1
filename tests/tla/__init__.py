"""A model of the protocol in TLA+, and the command that checks it."""
