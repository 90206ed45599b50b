"""One run: plan, stages, evaluation and teacher cache."""
