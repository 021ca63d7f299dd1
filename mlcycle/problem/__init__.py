"""Stage 1: the question, the metrics, the success criteria, and whether the table can answer."""
