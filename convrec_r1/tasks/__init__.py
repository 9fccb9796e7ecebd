"""What a command does, a module a task: each takes the config and the run's folder."""
