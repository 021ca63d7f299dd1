"""Stage 2: contract, checks, cleaning, quarantine, split."""
