"""Raw case to network input."""
