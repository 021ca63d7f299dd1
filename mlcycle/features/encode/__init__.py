"""Column types and the encoding of columns for each family of models."""
