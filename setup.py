"""Thin shim for tools that still call ``setup.py``; metadata and commands live in ``pyproject.toml``."""
from setuptools import setup

setup()
