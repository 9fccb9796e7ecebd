"""The files around a run: folder, checkpoints, metrics; and the fork server that starts runs."""
