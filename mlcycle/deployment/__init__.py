"""Stage 6: the release of an approved model and its packages; what serves them is in `mlcycle.lifecycle`."""
