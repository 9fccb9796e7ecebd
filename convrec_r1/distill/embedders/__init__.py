"""Texts -> vectors of length 1: a module an embedder."""
