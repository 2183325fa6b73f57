"""The one error type for what users hand to the library."""


class InputError(ValueError):
    """Input that cannot be used: says what was given, what was expected, what to do."""
