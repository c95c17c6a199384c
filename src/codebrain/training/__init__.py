"""Settings, the loop, its checkpoints and its log."""
