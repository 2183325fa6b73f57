"""How far numbers that are equal on paper may be apart, and why.

Each bound is a few times what f32 does by itself (measured on jax 0.10, 2 cores); what
exceeds it is a mistake, not rounding.
"""

LOGITS = {"rtol": 0, "atol": 1e-5}
"""Logits of the random backbone, computed in another order or by PyTorch. They are up
to 8, where neighbouring f32 numbers are 5e-7 apart; three layers of sums of 32 to 128
terms leave ten times that at most (5.3e-6 seen)."""

SUM = {"rtol": 1e-6}
"""A sum of f32 terms of one sign, such as losses, in another order: some roundings of
6e-8 each (1.7e-7 seen)."""

FEW = {"rtol": 3e-7}
"""Two or three operations on each number, 6e-8 each."""

STEPS = {"rtol": 0, "atol": 2e-6}
"""What three steps of Adam made of parameters up to 3, with gradients summed in another
order: neighbours are 2.4e-7 apart there (3.6e-7 seen)."""

GRADIENTS = {"rtol": 1e-5, "atol": 1e-5}
"""Gradients of summed losses, up to 10: sums of terms of both signs in another order
(3.1e-6 beside 0.3, and 1.2e-5 beside 5.3, seen)."""
