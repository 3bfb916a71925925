"""Trainers whose learning rate takes another course."""
