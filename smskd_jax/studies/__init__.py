"""Studies: variants of an experiment times seeds, on one store, and what their differences say."""
