"""Rows of data sets that TFDS prepared as array_record files; needs no TensorFlow."""

from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.core.data_sources.base import BaseDataSource

from prefix_jax.data.builders.official import BUILDERS, ID, prepare
from prefix_jax.data.files import listing
from prefix_jax.data.official.sets import SETS, SPLITS, set_of_tfds
from prefix_jax.errors import InputError, closest

_ROWS_AT_A_TIME = 1000


def read_tfds(
    name: str, split: str, data_dir: Path
) -> Iterator[tuple[str, dict[str, object]]]:
    """Rows of one split as (place, {column: value}), text decoded, labels by name.

    `name` is `NAME[/config][:version]`, `split` whatever TFDS takes (`train[:10%]`).
    Nothing is ever downloaded; where `data_dir` holds the official files of one of our
    sets, the prepared files are written into it first. Our sets come in the order of
    the official files, other data sets as stored. Raises InputError.
    """
    ours = set_of_tfds(name)
    if not _prepared(name, data_dir):
        if ours is None or not all(ours.has(data_dir, one) for one in SPLITS):
            raise _not_prepared(name, data_dir)
        prepare(_key(name), data_dir, data_dir)
    try:
        stored = tfds.data_source(name, split=split, data_dir=data_dir, download=False)
    except NotImplementedError as error:
        raise InputError(
            f"tfds:{name} in {data_dir} is not stored as array_record files; prepare "
            f"it in another folder: {_command(name, 'FOLDER')}"
        ) from error
    except (ValueError, AssertionError, OSError) as error:
        raise InputError(
            f'tfds:{name} in {data_dir}: cannot read split "{split}" ({error})'
        ) from error
    if not isinstance(stored, BaseDataSource):
        raise InputError(f'tfds:{name}: split "{split}" is not one split; name one')
    rows = _decoded_rows(stored, f"tfds:{name}, split {split}")
    if ours is not None:
        yield from sorted(rows, key=_official_number)
    else:
        yield from rows


def _official_number(placed_row: tuple[str, dict[str, object]]) -> int:
    number = placed_row[1][ID]
    assert isinstance(number, int)
    return number


def _decoded_rows(
    stored: BaseDataSource, place: str
) -> Iterator[tuple[str, dict[str, object]]]:
    features = stored.dataset_info.features
    assert isinstance(features, tfds.features.FeaturesDict)
    for start in range(0, len(stored), _ROWS_AT_A_TIME):
        numbers = range(len(stored))[start : start + _ROWS_AT_A_TIME]
        # Asked for row by row it takes three times as long.
        for number, row in zip(numbers, stored.__getitems__(numbers), strict=True):
            here = f"{place}, row {number}"
            yield here, {c: _decode(v, features[c], here) for c, v in row.items()}


def _key(tfds_name: str) -> str:
    """What the command line of our builders calls the set."""
    ours = set_of_tfds(tfds_name)
    return next(key for key in BUILDERS if SETS[key] is ours)


def _decode(
    value: object, feature: tfds.features.FeatureConnector, place: str
) -> object:
    """Text as str, a class label as its name, lists member by member, others as is."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{place}: not UTF-8 ({error})") from error
    if isinstance(feature, tfds.features.ClassLabel) and isinstance(value, int):
        # Test splits without labels store -1.
        return feature.int2str(value) if value >= 0 else value
    if isinstance(feature, tfds.features.Sequence) and isinstance(value, list):
        return [_decode(member, feature.feature, place) for member in value]
    return value


def _prepared(name: str, data_dir: Path) -> bool:
    """Whether some version of the data set lies in `data_dir`."""
    folder = data_dir / name.split(":")[0]
    return any(folder.glob("**/dataset_info.json"))


def _not_prepared(name: str, data_dir: Path) -> InputError:
    if not data_dir.is_dir():
        return InputError(f"data.path {data_dir}: no such folder; give a TFDS data_dir")
    present = {
        str(info.parent.parent.relative_to(data_dir))
        for info in data_dir.glob("*/**/dataset_info.json")
    }
    advice = (
        "put the official files there, or prepare it: "
        f"python -m prefix_jax.data.builders.official {_key(name)} FOLDER DATA_DIR"
        if set_of_tfds(name)
        else f"prepare it first, for example: {_command(name, data_dir)}"
    )
    return InputError(
        f"{data_dir} holds no prepared tfds:{name} (it holds {listing(present)}"
        f"{closest(name, present)}); {advice}"
    )


def _command(name: str, data_dir: Path | str) -> str:
    return (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{data_dir}', "
        "file_format='array_record').download_and_prepare()\" "
        "(some names are known only after a further import such as "
        "tensorflow_datasets.text)"
    )
