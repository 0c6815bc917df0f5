"""Settings of a run, its objective, its training, its scores."""
