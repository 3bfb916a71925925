"""Trainers with another optimiser."""
