"""Stage 1: demonstrations from a teacher by Remap-Reflect-Adjust, as in arXiv 2510.20150. Start at pipeline.py."""
