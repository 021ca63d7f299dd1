"""Pages of runs, facts about runs, comparison of runs, the look of plots."""
