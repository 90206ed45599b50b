"""Studies: variants of an experiment times seeds on one store, their executors and their report."""
