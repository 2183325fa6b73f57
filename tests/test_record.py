"""A run's record that cannot be read is named."""

import json

import pytest

from prefix_jax.config import BackboneConfig, Config
from prefix_jax.errors import InputError
from prefix_jax.runs.record import recorded_config, write_record


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


def test_a_run_of_before_a_setting_did_as_its_default_does(tmp_path):
    write_record(Config(), {}, tmp_path)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    del record["config"]["backbone"]["remat_keeps"]
    path.write_text(json.dumps(record))
    other = Config(backbone=BackboneConfig(remat=True, remat_keeps="products"))
    with pytest.raises(InputError, match="remat_keeps: 'nothing' there, 'products'"):
        write_record(other, {}, tmp_path)
    write_record(Config(), {}, tmp_path)
