"""The phantom dataset and its walk through the commands."""
