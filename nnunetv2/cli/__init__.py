"""Command line entry points, one module for each family of commands."""
