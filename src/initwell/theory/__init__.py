"""Gaussian moment theory of activations: moments, maps, gains and the layer chain; NumPy and SciPy only."""
