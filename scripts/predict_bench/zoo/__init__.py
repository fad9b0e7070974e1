"""The zoo's models, by family."""
