"""Stretches between layers of fresh weights that are played through with drawn numbers."""
