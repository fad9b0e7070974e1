"""One real forward and backward, and the statistics of every value on the way."""
