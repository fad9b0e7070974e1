"""One walk over a model: every op of its forward and backward, in order, in an immutable Trace."""
