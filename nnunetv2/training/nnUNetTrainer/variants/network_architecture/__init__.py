"""Trainers with another network or another use of it."""
