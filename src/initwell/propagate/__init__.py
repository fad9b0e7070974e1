"""The analytic walk: a Trace is walked with second moments instead of numbers."""
