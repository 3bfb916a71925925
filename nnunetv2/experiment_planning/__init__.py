"""Raw dataset to fingerprint and plans."""
