"""Training: data, optimiser, loop, checkpoint, and one recipe each for image tokenizer, encoder and generator."""
