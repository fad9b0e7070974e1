"""Plan, write, receipt: what each parameter gets and why, then the one place that writes it."""
