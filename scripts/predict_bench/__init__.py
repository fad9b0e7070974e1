"""The benchmark of `predict`: a zoo of whole models, and how far prediction lies from measurement."""
