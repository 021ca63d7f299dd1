"""Stage 6: the release of an approved model."""
