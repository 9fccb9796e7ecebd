"""Rollouts: prompts in, sampled lists out. One interface (`base`), an engine a module."""
