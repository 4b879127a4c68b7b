"""Emoji Scenes, the built-in world: drawings, captions, splits, and judges of what was drawn."""
