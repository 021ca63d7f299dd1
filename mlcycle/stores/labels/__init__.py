"""The label store: items, label sets, annotations."""
