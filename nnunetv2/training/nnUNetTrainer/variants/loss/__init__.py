"""Trainers with another segmentation loss."""
