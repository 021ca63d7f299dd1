"""Stage 3: exploration, target leakage, feature creation, encoding, feature selection."""
