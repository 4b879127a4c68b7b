"""Evaluation: one metric a file, pure functions; and the protocols that put a system through them."""
