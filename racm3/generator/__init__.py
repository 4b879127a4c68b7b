"""Generator: the model, its loss, the prompt, and decoding. See ``model.py`` first."""
