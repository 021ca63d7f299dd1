"""Versioned Delta tables of a workspace, the holdout among them."""
