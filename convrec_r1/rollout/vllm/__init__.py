"""vLLM in the trainer's process (`inprocess`) and as servers beside it (`pool`). `worker` and `stop` run inside vLLM."""
