"""Stage 7: latency, quality and drift of the released model."""
