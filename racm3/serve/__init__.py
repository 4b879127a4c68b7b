"""Serving: an HTTP API over one model and one memory, and a page. ``docs/serve.md`` says how to run it."""
