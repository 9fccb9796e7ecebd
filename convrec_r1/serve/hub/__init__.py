"""A policy in the form of the Hugging Face Hub: its folder, its model card, its upload."""
