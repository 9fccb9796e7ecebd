"""Stage 1: demonstrations from a teacher by Remap-Reflect-Adjust (design section 8). Start at pipeline.py."""
