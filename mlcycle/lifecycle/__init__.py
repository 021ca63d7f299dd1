"""Runs through the stages: plan, freshness, execution, locks, batches, projects; and deployments: records, status, changes.

What is deployed, the release and its packages, is made in `mlcycle.deployment`.
"""
