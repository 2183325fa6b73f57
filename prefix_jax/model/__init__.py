"""The language model, its prefixes, and their files."""
