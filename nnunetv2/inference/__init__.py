"""Trained model and raw images to predictions."""
