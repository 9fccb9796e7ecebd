"""Rollouts: prompts in, sampled lists out. `base` has the interface; each engine is a module."""
