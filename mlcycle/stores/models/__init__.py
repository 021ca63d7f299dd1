"""Model files, the registry of models, and the tracking of trials."""
