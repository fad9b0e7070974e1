"""Counter-based random numbers: a value depends on (seed, parameter name, element) and on nothing else."""
