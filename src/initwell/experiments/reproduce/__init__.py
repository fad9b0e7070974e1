"""One file a claim: what was claimed, the run, the figure, and a verdict computed from the numbers."""
