"""task=doctor: check the machine for a run of this config, and forecast the run's time and memory."""
