"""Lightning: `sft` and `rl` wire the parts together, `step` is what both share, `fit` runs them, `callbacks` watch."""
