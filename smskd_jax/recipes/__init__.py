"""Recipes: stage lists and published numbers of the papers, for config files."""
