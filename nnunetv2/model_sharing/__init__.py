"""Trained models for other people and other programs."""
