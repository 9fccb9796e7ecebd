"""vLLM: in the trainer's process (`inprocess`), or as servers of their own (`server`, `pool`).

`options` says how an engine is set up, the same for both. `worker` and `stop` run inside vLLM.
"""
