"""ConvRec-R1: train language models that answer a conversation with a ranked list of catalog items."""

__version__ = "0.3.0.dev0"
"""The only place that says it: pyproject.toml reads it here. Keys of kept artifacts hold a digest of the code instead."""
