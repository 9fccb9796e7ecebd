"""What surrounds a run: its folder, its metrics, its log, its progress bars."""
