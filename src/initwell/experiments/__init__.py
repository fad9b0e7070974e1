"""Training that can be believed: data, networks, runs that are kept, comparisons with intervals."""
