"""Sizes of the streams of `retraining_streams.py`, which runs in an environment of its own."""

TRAIN, HOLDOUT, ROWS = 4000, 4000, 30_000  # Rows that a model is fitted to, that its loss is known on, and of the stream
CHANGE, WIDTH = 10_000, 5000  # Rows of the stream before the change; rows that a gradual change takes
SUDDEN = 200  # Rows that a sudden change takes: with much fewer, river's stream overflows
