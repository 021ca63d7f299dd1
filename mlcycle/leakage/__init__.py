"""Target leakage: columns that hold information which is not available at prediction time."""
