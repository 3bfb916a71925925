"""Other layouts to the raw layout."""
