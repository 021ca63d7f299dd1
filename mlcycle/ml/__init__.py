"""What several stages share about models: metrics, predictions, folds, criteria, cleaning, outliers, ensembles."""
