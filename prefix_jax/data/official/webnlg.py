"""WebNLG challenge 2017: XML files of triples and texts, in folders or one tar.gz.

Gardent et al. 2017, "The WebNLG Challenge: Generating Text from RDF Data".
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast
from xml.parsers import expat

from prefix_jax.data.files import LARGEST, listing
from prefix_jax.errors import InputError, shortened

SPLITS = {
    "train": "train/",
    "validation": "dev/",
    "test": "test/testdata_with_lex.xml",
}
"""Split names, and what the paths of their files begin with."""

SEEN = (
    "Airport",
    "Astronaut",
    "Building",
    "City",
    "ComicsCharacter",
    "Food",
    "Monument",
    "SportsTeam",
    "University",
    "WrittenWork",
)
"""Categories of the training data; the test data have five others."""

MOST_MEMBERS = 10_000
"""Files in an archive; WebNLG's has 124."""

SOURCE, TEXTS, SUBSET = "source", "references", "subset"


def linearise(triples: list[tuple[str, str, str]]) -> str:
    """Triples as the paper's text: `| subject : property : object`, for each of them.

    The leading bar is the paper's.
    """
    return " ".join("| " + " : ".join(triple) for triple in triples)


def has(folder: Path, split: str) -> bool:
    """Whether the split is there, unpacked, or some archive that should hold it."""
    return (folder / SPLITS[split]).exists() or any(folder.glob("*.tar.gz"))


def read(folder: Path, split: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Entries of `train`, `validation` or `test` as (place, {column: value}).

    Columns: source (linearised), references, subset (`seen` or `unseen`, by whether the
    training data have the category). Training keeps only texts whose comment is "good",
    as the paper did. Raises InputError with file and line.
    """
    if split not in SPLITS:
        raise InputError(
            f'WebNLG has no split "{split}"; expected one of {", ".join(SPLITS)}'
        )
    empty = True
    for path, content in _files(folder, SPLITS[split]):
        empty = False
        for entry in _Parser(path).parse(content):
            texts = [
                text
                for text, comment in entry.texts
                if split != "train" or comment == "good"
            ]
            if texts:
                yield (
                    entry.place,
                    {
                        SOURCE: linearise(entry.triples),
                        TEXTS: texts,
                        SUBSET: "seen" if entry.category in SEEN else "unseen",
                    },
                )
    if empty:
        present = (
            [path.name for path in folder.iterdir()] if folder.is_dir() else ["nothing"]
        )
        raise InputError(
            f"{folder} has no {SPLITS[split]} of WebNLG 2017, unpacked or in one "
            f".tar.gz; it holds {listing(present)}: give the folder that holds train, "
            "dev and test"
        )


def _files(folder: Path, start: str) -> Iterator[tuple[str, bytes]]:
    """XML files, in the order of their names, as (name for messages, content)."""
    whole = folder / start
    if whole.exists():
        paths = sorted(whole.rglob("*.xml")) if whole.is_dir() else [whole]
        for path in filter(Path.is_file, paths):
            _check_size(str(path), path.stat().st_size)
            yield str(path), path.read_bytes()
        return
    for archive in sorted(folder.glob("*.tar.gz")) if folder.is_dir() else []:
        try:
            yield from _members(archive, start)
        except InputError:
            raise
        # On bytes that are no archive tarfile fails in several ways.
        except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
            raise InputError(
                f"{archive}: damaged archive ({error}); copy it again"
            ) from error


def _members(archive: Path, start: str) -> Iterator[tuple[str, bytes]]:
    """XML files of an archive. Nothing is unpacked, and a link is not followed."""
    with gzip.open(archive) as unzipped:
        # Headers, too, have sizes of their own, which tarfile believes.
        bounded = cast(IO[bytes], _Bounded(unzipped, str(archive)))
        with tarfile.open(fileobj=bounded) as members:
            found = []
            for number, member in enumerate(members):
                if number >= MOST_MEMBERS:
                    raise InputError(
                        f"{archive}: more than {MOST_MEMBERS:,} files, which is no "
                        "archive of WebNLG; copy it again"
                    )
                name = member.name
                if name.startswith(start) and name.endswith(".xml") and member.isreg():
                    _check_size(f"{archive}, {name}", member.size)
                    found.append(member)
            for member in sorted(found, key=lambda one: one.name):
                content = members.extractfile(member)
                assert content is not None
                yield f"{archive}, {member.name}", content.read()


def _check_size(place: str, size: int) -> None:
    if size > LARGEST:
        raise InputError(
            f"{place}: {size:,} bytes, which is no file of WebNLG; expected at most "
            f"{LARGEST:,}"
        )


class _Bounded:
    """A file of which no more than `LARGEST` bytes are read at a time."""

    def __init__(self, file: gzip.GzipFile, place: str):
        self._file, self._place = file, place
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        _check_size(self._place, size if size >= 0 else LARGEST + 1)
        return self._file.read(size)


class _Entry:
    def __init__(self, place: str, category: str):
        self.place, self.category = place, category
        self.triples: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []


class _Parser:
    """Entries of one file. (ElementTree would not know their lines.)"""

    def __init__(self, path: str):
        self._path = path
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._add
        self._parser.EntityDeclHandler = self._refuse_entity
        self._entries: list[_Entry] = []
        self._text: list[str] = []
        self._comment = ""

    def parse(self, content: bytes) -> list[_Entry]:
        try:
            self._parser.Parse(content, True)
        except expat.ExpatError as error:
            raise InputError(
                f"{self._path}, line {error.lineno}: not XML "
                f"({expat.ErrorString(error.code)}); copy the file again"
            ) from error
        except InputError:
            raise
        except (LookupError, ValueError) as error:  # of an encoding that expat has not
            raise InputError(
                f"{self._path}, line 1: not XML that can be read ({error}); save the "
                "file as UTF-8"
            ) from error
        for entry in self._entries:
            if not entry.triples:
                raise InputError(
                    f"{entry.place}: an entry without <mtriple>; expected such as "
                    "<mtriple>Alan_Bean | nationality | United_States</mtriple>"
                )
        return self._entries

    @property
    def _place(self) -> str:
        return f"{self._path}, line {self._parser.CurrentLineNumber}"

    def _refuse_entity(self, name: str, *_: object) -> None:
        """An entity can stand for another file, or for a billion words."""
        raise InputError(
            f"{self._place}: declares the entity {shortened(name, 60)}; WebNLG's files "
            "declare none: write what it stands for"
        )

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._text = []
        if name == "entry":
            category = attributes.get("category")
            if category is None:
                raise InputError(f"{self._place}: an <entry> without its category")
            self._entries.append(_Entry(self._place, category))
        elif name in ("mtriple", "lex") and not self._entries:
            raise InputError(f"{self._place}: <{name}> outside of any <entry>")
        elif name == "lex":
            self._comment = attributes.get("comment", "")

    def _add(self, text: str) -> None:
        self._text.append(text)

    def _end(self, name: str) -> None:
        text = "".join(self._text).strip()
        if name == "lex":
            self._entries[-1].texts.append((text, self._comment))
        elif name == "mtriple":
            parts = [part.strip() for part in text.split(" | ")]
            if len(parts) != 3:
                raise InputError(
                    f'{self._place}: "{shortened(text)}" is not a triple; expected '
                    '"subject | property | object"'
                )
            self._entries[-1].triples.append((parts[0], parts[1], parts[2]))
