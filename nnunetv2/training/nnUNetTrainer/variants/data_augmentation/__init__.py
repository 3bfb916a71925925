"""Trainers that augment differently."""
