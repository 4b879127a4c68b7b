"""The memory: documents and their vectors, on disk, searched exactly."""
