"""Where things are kept: sources, tables, models, the prediction log, outcome files."""
