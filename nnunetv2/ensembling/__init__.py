"""Predictions of several models, averaged."""
