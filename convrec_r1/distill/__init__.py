"""Stage 1, Remap-Reflect-Adjust: from what a black-box teacher answers to demonstrations of catalog items."""
