"""Trainers that train for another number of epochs."""
