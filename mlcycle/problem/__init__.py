"""Stage 1: the problem, the metrics, the success criteria, and whether the table can reach them."""
