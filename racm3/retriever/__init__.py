"""The retriever: from a document to a few good, different documents of the memory."""
