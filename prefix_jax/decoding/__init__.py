"""From prompts to texts: the loops, their rules, requests."""
