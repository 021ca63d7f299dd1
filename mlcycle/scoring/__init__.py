"""Batch scoring: a release predicts the rows of files, folders and databases, block by block."""
