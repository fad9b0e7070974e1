"""What a walk is given: batch, weights and known numbers as Signals, and what is refused."""
