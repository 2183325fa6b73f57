"""`python -m prefix_jax` is `prefix-jax`."""

from prefix_jax.cli import program

program()
