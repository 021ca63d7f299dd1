"""Stage 5: the gates, decided on the holdout."""
