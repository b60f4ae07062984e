"""A collection on disk, and the state that is searched."""
