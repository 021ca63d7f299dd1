"""Stage 4: candidates, hyperparameter search, ensembles, calibration, model selection."""
