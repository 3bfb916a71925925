"""Leaf helpers that know no stage."""
