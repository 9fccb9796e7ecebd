"""Teachers of Stage 1: the protocol, one module for each built-in teacher, and the interview that asks each question once."""
