"""The text that the bundled backbone `tiny` is pre-trained on, and its tokenizer.

    python -m prefix_jax.data.builders.corpus --text FOLDER --out FOLDER

Reads enwik8, WikiText-2 and 18 Gutenberg books, keeps their plain English prose,
parts it into training and held-out documents, and trains a byte-level BPE on the
former. The same input gives the same bytes.
"""

import argparse
import gzip
import json
import multiprocessing
import random
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from prefix_jax.data.builders import prose
from prefix_jax.errors import InputError
from prefix_jax.model.loading import END

# Verse and plays teach a small model line breaks and old spelling, not sentences;
# and the King James Bible alone would be as large as all the other books together.
LEFT_OUT = ("bible", "blake", "milton", "shakespeare", "whitman")
HELD_OUT_BOOK = "austen-persuasion.txt"
HELD_OUT_SHARE = 0.2  # of that book, from its end
HELD_OUT_ARTICLES = 0.01  # of enwik8's articles, from its end
PIECE = 12_000  # characters of a book that make one document
SHORTEST = 300  # characters of a document
TOKENIZER_SAMPLE = 30_000_000  # characters of the training text
SEED = 0


@dataclass(frozen=True)
class Document:
    """A title (empty for a piece of a book) and its paragraphs."""

    title: str
    paragraphs: tuple[str, ...]

    @property
    def size(self) -> int:
        """Characters in all paragraphs."""
        return sum(map(len, self.paragraphs))

    @property
    def key(self) -> str:
        """The title without case, spacing and punctuation, to compare sources."""
        return re.sub(r"[\W_]+", "", self.title.casefold())


@dataclass(frozen=True)
class Corpus:
    """Training, validation and test documents; no title or paragraph is in two."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    test: tuple[Document, ...]


# --- reading ----------------------------------------------------------------


def _gunzip(folder: Path, name: str) -> str:
    try:
        # "ignore": enwik8 is the first 10^8 bytes of a dump, whatever they cut.
        return gzip.decompress((folder / name).read_bytes()).decode("utf-8", "ignore")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"cannot read {folder / name}: {error}; --text expects a folder with "
            "enwik8.gz, gutenberg_18_books.tar.gz and wikitext2.{train,valid,test}"
            ".raw.gz"
        ) from error


def _read_books(folder: Path) -> dict[str, str]:
    path = folder / "gutenberg_18_books.tar.gz"
    try:
        with tarfile.open(path) as archive:
            files = {
                Path(member.name).name: archive.extractfile(member)
                for member in archive
                if member.isfile() and member.name.endswith(".txt")
            }
            return {
                name: file.read().decode("latin-1")
                for name, file in sorted(files.items())
                if file is not None
            }
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(
            f"cannot read {path}: {error}; expected a tar.gz of .txt books"
        ) from error


def _article(page: tuple[str, str]) -> Document:
    title, text = page
    return Document(title, tuple(prose.wiki_paragraphs(text)))


def read_wikipedia(xml: str, processes: int = 2) -> list[Document]:
    """The articles of a dump, in its order, cleaned, the very short ones left out."""
    pages = prose.wiki_pages(xml)
    if processes > 1:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            documents = pool.map(_article, pages, chunksize=64)
    else:
        documents = [_article(page) for page in pages]
    return [document for document in documents if document.size >= SHORTEST]


def read_wikitext(raw: str, *, every_paragraph: bool) -> list[Document]:
    """WikiText's articles, of which only the prose unless `every_paragraph`."""
    documents = []
    for title, paragraphs in prose.wikitext_articles(raw):
        if not every_paragraph:
            paragraphs = [p for p in map(prose.tidy, paragraphs) if prose.is_prose(p)]
        if paragraphs:
            documents.append(Document(title, tuple(paragraphs)))
    return documents


def read_books(texts: dict[str, str]) -> tuple[list[Document], list[Document]]:
    """(training, held-out) pieces of the prose books, by file name."""
    train: list[Document] = []
    held_out: list[Document] = []
    for name, text in texts.items():
        if name.startswith(LEFT_OUT):
            continue
        parts = [
            Document("", tuple(piece))
            for piece in prose.pieces(prose.book_paragraphs(text), PIECE)
        ]
        cut = len(parts)
        if name == HELD_OUT_BOOK:
            cut = round(len(parts) * (1 - HELD_OUT_SHARE))
        train += parts[:cut]
        held_out += parts[cut:]
    return train, held_out


# --- parting ----------------------------------------------------------------


def without(
    documents: Iterable[Document], held_out: Iterable[Document]
) -> list[Document]:
    """The documents less every title and every paragraph that `held_out` has."""
    held_out = list(held_out)
    titles = {document.key for document in held_out} - {""}
    paragraphs = {p for document in held_out for p in document.paragraphs}
    kept = []
    for document in documents:
        if document.key in titles:
            continue
        rest = tuple(p for p in document.paragraphs if p not in paragraphs)
        if rest:
            kept.append(Document(document.title, rest))
    return kept


def build_corpus(folder: Path, processes: int = 2) -> Corpus:
    """Read, clean, part and shuffle the text in `folder`.

    Validation is the last 1 % of enwik8's articles, WikiText-2's validation split
    and the end of one book; test is WikiText-2's, every paragraph of it.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    wikitext = {
        split: read_wikitext(
            _gunzip(folder, f"wikitext2.{split}.raw.gz"),
            every_paragraph=split == "test",
        )
        for split in ("train", "valid", "test")
    }
    books, held_out_book = read_books(_read_books(folder))
    articles = read_wikipedia(_gunzip(folder, "enwik8.gz"), processes)
    cut = round(len(articles) * (1 - HELD_OUT_ARTICLES))
    test = wikitext["test"]
    validation = without(articles[cut:] + wikitext["valid"] + held_out_book, test)
    train = without(articles[:cut] + wikitext["train"] + books, validation + test)
    # Shuffled, so that the start of either file is already a fair sample of it.
    random.Random(SEED).shuffle(train)
    random.Random(SEED).shuffle(validation)
    return Corpus(tuple(train), tuple(validation), tuple(test))


def as_text(documents: Iterable[Document]) -> str:
    """One paragraph a line; a line `<|endoftext|>` after each document."""
    return "".join(
        "\n".join(document.paragraphs) + f"\n{END}\n" for document in documents
    )


# --- tokenizer --------------------------------------------------------------


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with GPT-2's pre-tokenisation; `<|endoftext|>` is its last id.

    Raises:
        InputError: `vocab_size` cannot hold the 256 bytes and the end token.
    """
    if vocab_size < 257:
        raise InputError(
            f"vocab size {vocab_size} is below 257 = 256 bytes + {END}; raise it"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([END])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the two files from which `transformers` loads a fast tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m prefix_jax.data.builders.corpus",
        description="Make the pre-training text and the tokenizer of `tiny`.",
        epilog=(
            "Writes train.txt, validation.txt and wikitext2_test.txt (one paragraph "
            f"a line, {END} on a line after each document) and tokenizer/. Takes "
            "about a minute on two cores. Example: --text data/text --out corpus"
        ),
    )
    parser.add_argument(
        "--text",
        type=Path,
        required=True,
        help="folder with enwik8.gz, gutenberg_18_books.tar.gz and "
        "wikitext2.{train,valid,test}.raw.gz, as their authors distribute them",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write (made if absent)"
    )
    parser.add_argument(
        "--vocab-size",
        type=int,
        default=4096,
        help=f"tokens, {END} included (default: %(default)s)",
    )
    parser.add_argument(
        "--processes", type=int, default=2, help="cleaning processes (default: 2)"
    )
    options = parser.parse_args(arguments)
    try:
        corpus = build_corpus(options.text, options.processes)
        options.out.mkdir(parents=True, exist_ok=True)
        for name, documents in (
            ("train", corpus.train),
            ("validation", corpus.validation),
            ("wikitext2_test", corpus.test),
        ):
            text = as_text(documents)
            (options.out / f"{name}.txt").write_text(text, encoding="utf-8")
            print(f"{name}.txt: {len(documents):,} documents, {len(text):,} characters")
        sample = as_text(corpus.train)[:TOKENIZER_SAMPLE]
        lines = (line + "\n" for line in sample.split("\n") if line != END)
        save_tokenizer(
            train_tokenizer(lines, options.vocab_size), options.out / "tokenizer"
        )
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
