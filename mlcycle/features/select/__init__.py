"""Feature selection on held-out rows, and the ledger of features."""
