"""Embedders of Stage 1: texts -> vectors of length 1. The protocol, and one module for each built-in embedder."""
