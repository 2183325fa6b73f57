"""TFDS builder of E2E NLG 2017 from the official CSV files; needs no TensorFlow.

    python -m prefix_jax.data.builders.e2e CSV_FOLDER DATA_DIR

prepares it into DATA_DIR; `--data.source tfds:e2e_nlg --data.path DATA_DIR` reads it.
(TFDS itself has `e2e_cleaned`, which is another data set.)
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from prefix_jax.data import e2e
from prefix_jax.data.files import read_rows
from prefix_jax.errors import InputError


class E2eNlg(tfds.core.GeneratorBasedBuilder):
    """E2E NLG 2017: 42,061 + 4,672 + 4,693 pairs of meaning representation and text.

    Columns are in `prefix_jax.data.e2e`. TFDS shuffles rows when it writes them; `id`,
    the row's number in its official file from 0, restores their order.
    """

    # TFDS would find it by way of importlib_resources, which it does not require.
    code_path = epath.Path(__file__)
    name = e2e.TFDS_NAME
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "The official CSV files, unchanged."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put trainset.csv, devset.csv and testset_w_refs.csv (each may end in .gz), "
        "from https://github.com/tuetschek/e2e-dataset, into the manual folder."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description="Restaurant descriptions from meaning representations.",
            features=tfds.features.FeaturesDict(
                {
                    e2e.TFDS_MEANING: text(),
                    e2e.TFDS_TEXT: text(),
                    e2e.TFDS_ID: np.int64,
                }
            ),
            supervised_keys=(e2e.TFDS_MEANING, e2e.TFDS_TEXT),
            homepage="https://www.macs.hw.ac.uk/InteractionLab/E2E/",
            license="CC BY-SA 4.0",
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
        folder = Path(dl_manager.manual_dir)
        return {
            split: self._generate_examples(e2e.find_split(folder, split))
            for split in e2e.SPLITS
        }

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, dict[str, object]]]:
        for number, (place, row) in enumerate(read_rows(path)):
            if not {e2e.MEANING, e2e.TEXT} <= row.keys():
                raise InputError(
                    f"{place}: columns {', '.join(row)}; "
                    f"expected {e2e.MEANING}, {e2e.TEXT}"
                )
            yield (
                number,
                {
                    e2e.TFDS_MEANING: row[e2e.MEANING],
                    e2e.TFDS_TEXT: row[e2e.TEXT],
                    e2e.TFDS_ID: number,
                },
            )


def prepare(csv_folder: Path, data_dir: Path) -> None:
    """Write the data set as array_record files under `data_dir`, unless it is there.

    Raises InputError where the official files are missing or `data_dir` cannot be
    written.
    """
    for split in e2e.SPLITS:
        e2e.find_split(csv_folder, split)
    advice = (
        "prepare it elsewhere: python -m prefix_jax.data.builders.e2e "
        f"{csv_folder} DATA_DIR, then --data.path DATA_DIR"
    )
    # The mode itself is asked, as root could write all the same: a folder that its
    # owner marked as read-only stays as it is.
    if data_dir.is_dir() and not data_dir.stat().st_mode & 0o222:
        raise InputError(
            f"{data_dir} is read-only, so that E2E cannot be prepared in it; {advice}"
        )
    try:
        builder = E2eNlg(data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=csv_folder)
        )
    except OSError as error:
        raise InputError(
            f"cannot write the prepared E2E into {data_dir} ({error.strerror}); "
            f"{advice}"
        ) from error


def main(arguments: list[str] | None = None) -> None:
    """The command line of this module's docstring."""
    parser = argparse.ArgumentParser(
        description="Write E2E NLG 2017 as a TFDS data set, for tfds:e2e_nlg."
    )
    parser.add_argument("csv_folder", type=Path, help="folder of the official files")
    parser.add_argument("data_dir", type=Path, help="TFDS folder to write into")
    given = parser.parse_args(arguments)
    try:
        prepare(given.csv_folder, given.data_dir)
    except InputError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
