"""vLLM in the process that samples (`inprocess`). `worker` and `stop` are its extensions: vLLM imports them by name."""
