"""The Python side of ``nnUNetv2_train``."""
