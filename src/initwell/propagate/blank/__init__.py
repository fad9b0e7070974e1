"""Blank rows: those of a padding token, followed one by one beside the moments of all rows."""
