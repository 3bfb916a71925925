"""Trainers. Any class below this folder is found by its name (-tr)."""
