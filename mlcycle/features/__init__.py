"""Stage 3: exploration, feature creation, encoding, feature selection."""
