"""Variants of nnUNetTrainer, one idea per file."""
