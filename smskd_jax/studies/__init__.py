"""Studies: variants times seeds on one store, their executors and their report."""
