"""Detection of target leakage."""
