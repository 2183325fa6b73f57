"""Data sets as their authors distribute them, read from the official files."""
