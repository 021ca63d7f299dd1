"""Labels from people, rules and the source: agreement, consensus, queues, suspect labels."""
