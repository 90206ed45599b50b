"""Stage lists of the papers, for config files."""
