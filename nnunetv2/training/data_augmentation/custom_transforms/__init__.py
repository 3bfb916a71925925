"""Transforms for batches of numpy arrays in the style of batchgenerators; kept for custom trainers that import them."""
