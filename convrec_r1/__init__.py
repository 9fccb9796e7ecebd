"""ConvRec-R1: train language models that answer a conversation with a ranked list of catalog items."""

__version__ = "0.1.0"
