"""Rollout workers: Ray actors that sample, each with an engine of its own."""
