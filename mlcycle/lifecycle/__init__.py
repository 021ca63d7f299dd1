"""Runs: plan, freshness, execution, locks, batches, projects; deployments, which serve what `mlcycle.deployment` makes."""
