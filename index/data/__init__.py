"""Labelled rows and pictures as they come in."""
