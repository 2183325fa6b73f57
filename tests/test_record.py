"""A run's record that cannot be read is named."""

import pytest

from prefix_jax.errors import InputError
from prefix_jax.runs.record import recorded_config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no run"),
        ("{", "config.json:1: not JSON"),
        ("[1]", "expected an object"),
        ("{}", "has no `config`"),
        ('{"config": {"prefix": 3}}', "section prefix is 3"),
    ],
)
def test_a_record_that_cannot_be_read(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        recorded_config(tmp_path)
