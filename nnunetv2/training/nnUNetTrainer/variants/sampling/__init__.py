"""Trainers that choose patches differently."""
