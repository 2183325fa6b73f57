"""TFDS builders of the official data sets, from their files; need no TensorFlow.

    python -m prefix_jax.data.builders.official e2e FOLDER DATA_DIR

prepares E2E into DATA_DIR; `--data.source tfds:e2e_nlg --data.path DATA_DIR` reads it.
Other sets: webnlg, dart, xsum, sst2, multi30k. The names differ from those of TFDS's
own builders (`web_nlg`, `dart`, `glue`), whose columns are others.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from prefix_jax.data.official.sets import SETS, SPLITS, OfficialSet
from prefix_jax.errors import InputError, closest

ID = "id"
"""Column with the row's number in its split, from 0: TFDS shuffles what it writes."""


class OfficialBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The splits of one of `SETS` that are there, its columns unchanged, and `ID`."""

    # TFDS would find it by way of importlib_resources, which it does not require.
    code_path = epath.Path(__file__)
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "The official files, unchanged."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the official files into the manual folder."
    official: ClassVar[OfficialSet]

    def _info(self) -> tfds.core.DatasetInfo:
        one, text = self.official, tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{one.title}, from the official files.",
            features=tfds.features.FeaturesDict(
                {
                    **{name: text() for name in one.texts},
                    **{name: tfds.features.Sequence(text()) for name in one.lists},
                    ID: np.int64,
                }
            ),
            homepage=one.homepage,
            license=one.licence,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
        folder = Path(dl_manager.manual_dir)
        return {
            split: self._generate_examples(folder, split)
            for split in SPLITS
            if self.official.has(folder, split)
        }

    def _generate_examples(
        self, folder: Path, split: str
    ) -> Iterator[tuple[int, dict[str, object]]]:
        for number, (_, row) in enumerate(self.official.read(folder, split)):
            yield number, {**row, ID: number}


class E2eNlg(OfficialBuilder):
    """Rows are pairs of meaning representation and text."""

    official = SETS["e2e"]
    name = official.tfds_name


class Webnlg2017(OfficialBuilder):
    """Rows are linearised sets of triples with all of their texts."""

    official = SETS["webnlg"]
    name = official.tfds_name


class DartTriples(OfficialBuilder):
    """Rows are linearised sets of triples with all of their texts."""

    official = SETS["dart"]
    name = official.tfds_name


class XsumLines(OfficialBuilder):
    """Rows are pairs of document and summary."""

    official = SETS["xsum"]
    name = official.tfds_name


class Sst2Lines(OfficialBuilder):
    """Rows are pairs of sentence and label, `0` or `1`."""

    official = SETS["sst2"]
    name = official.tfds_name


class Multi30kLines(OfficialBuilder):
    """Rows are one sentence in each of the languages."""

    official = SETS["multi30k"]
    name = official.tfds_name


BUILDERS: dict[str, type[OfficialBuilder]] = {
    "e2e": E2eNlg,
    "webnlg": Webnlg2017,
    "dart": DartTriples,
    "xsum": XsumLines,
    "sst2": Sst2Lines,
    "multi30k": Multi30kLines,
}


def prepare(name: str, folder: Path, data_dir: Path) -> None:
    """Write the set as array_record files under `data_dir`, unless it is there.

    `folder` holds the official files; splits without files are left out. Raises
    InputError where there is none, or `data_dir` cannot be written.
    """
    if name not in BUILDERS:
        raise InputError(
            f'there is no builder for "{name}"{closest(name, BUILDERS)}; expected one '
            f"of {', '.join(BUILDERS)}"
        )
    official = SETS[name]
    if not any(official.has(folder, split) for split in SPLITS):
        next(official.read(folder, "train"), None)  # says what is missing
    advice = (
        "prepare it elsewhere: python -m prefix_jax.data.builders.official "
        f"{name} {folder} DATA_DIR, then --data.path DATA_DIR"
    )
    # The mode itself is asked, as root could write all the same: a folder that its
    # owner marked as read-only stays as it is.
    if data_dir.is_dir() and not data_dir.stat().st_mode & 0o222:
        raise InputError(
            f"{data_dir} is read-only, so that {official.title} cannot be prepared in "
            f"it; {advice}"
        )
    try:
        builder = BUILDERS[name](data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=folder)
        )
    except OSError as error:
        raise InputError(
            f"cannot write the prepared {official.title} into {data_dir} "
            f"({error.strerror}); {advice}"
        ) from error


def main(arguments: list[str] | None = None) -> None:
    """The command line of this module's docstring."""
    parser = argparse.ArgumentParser(
        description="Write an official data set as a TFDS one, for tfds:NAME."
    )
    parser.add_argument("set", choices=BUILDERS, help="which data set")
    parser.add_argument("folder", type=Path, help="folder of the official files")
    parser.add_argument("data_dir", type=Path, help="TFDS folder to write into")
    given = parser.parse_args(arguments)
    try:
        prepare(given.set, given.folder, given.data_dir)
    except InputError as error:
        parser.exit(1, f"{error}\n")
    print(f"read it with --data.source tfds:{SETS[given.set].tfds_name}")


if __name__ == "__main__":
    main()
