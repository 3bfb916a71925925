"""Commands: each parses its options, then calls the Python function behind it."""
