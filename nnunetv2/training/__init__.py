"""Preprocessed data to a trained model."""
