"""Names of the data adapters. No imports: the config checks read this first."""

ADAPTERS: dict[str, bool] = {"movieland": False, "reddit_v2": True, "redial": True, "jsonl": True}
"""Adapter -> whether it reads files that the user has to point at (`data.path`)."""
