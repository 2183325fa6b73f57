"""From raw files to batches: sources, tasks, tokens, batches (see each module)."""
