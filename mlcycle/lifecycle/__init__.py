"""Runs through the stages: plan, freshness, execution, locks, batches, projects."""
