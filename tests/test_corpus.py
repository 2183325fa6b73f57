"""The corpus of `tiny`: markup goes, prose stays, held-out text is held out."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from prefix_jax.data.builders import corpus, prose
from prefix_jax.errors import InputError

SENTENCE = (
    "The river rises in the hills to the north of the town, and it is navigable "
    "for most of the year by the small boats of the people who live beside it."
)


def numbered(n: int) -> str:
    return (
        f"In the year of the {n}th flood, it was said, {SENTENCE[0].lower()}"
        + (SENTENCE[1:])
    )


def page(title: str, text: str) -> str:
    return (
        f"<page><title>{title}</title><revision><comment>a note</comment>"
        f'<text xml:space="preserve">{text}</text></revision></page>\n'
    )


# --- wiki markup ------------------------------------------------------------


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        ("'''Ada''' ''wrote''", "Ada wrote"),
        ("[[computer program|programs]] and [[poetry]]", "programs and poetry"),
        ("[[Mercury (planet)|]] shines", "Mercury shines"),
        ("[[Image:a.jpg|thumb|The [[sea]] at [[dawn|day]].]]After", "After"),
        ("x[[fr:Chat]][[Category:Cats]]", "x"),
        ("a{{Infobox|b={{c|d}}}}e", "ae"),
        ("a{|\n| b {| c |} d\n|}e", "ae"),
        ("a<ref name=x>note</ref>b<ref name=x />c<!-- d -->e", "abce"),
        ("[http://x.org the site], [http://y.org 1]", "the site, "),
        ("5 km<sup>2</sup> of H<sub>2</sub>O", "5 km² of H2O"),
        ("tea &mdash; milk&nbsp;too", "tea — milk\xa0too"),
    ],
)
def test_markup_is_removed(markup: str, plain: str) -> None:
    assert prose.strip_wiki_markup(markup) == plain


def test_paragraph_with_a_formula_or_a_bare_address_is_dropped() -> None:
    text = f"{SENTENCE} <math>x^2</math> is it.\n\n{SENTENCE} http://x.org is it."
    assert prose.wiki_paragraphs(text) == []


def test_only_prose_lines_remain() -> None:
    text = (
        f":''For others see [[x]].''\n{SENTENCE}\n==History==\n* {SENTENCE}\n"
        f"# {SENTENCE}\n {SENTENCE}\n----\n{numbered(2)}\n"
        f"==See also==\n{numbered(3)}\n===Deep===\n{numbered(4)}\n"
        f"==Later==\n{numbered(5)}\n"
        f"== References ==\n{numbered(6)}"
    )
    assert prose.wiki_paragraphs(text) == [SENTENCE, numbered(2), numbered(5)]


def test_pages_that_are_not_articles_are_left_out() -> None:
    xml = (
        page("A", "#REDIRECT [[B]]")
        + page("Template:B", SENTENCE)
        + page("List of rivers", SENTENCE)
        + page("1984", SENTENCE)
        + page("River (disambiguation)", SENTENCE)
        + page("Tom &amp; Jerry", "a &lt;b&gt;")
        + "<page><title>Cut</title><text>off in the mid"
    )
    assert prose.wiki_pages(xml) == [("Tom & Jerry", "a <b>")]


@pytest.mark.parametrize(
    ("holes", "mended"),
    [
        ("Athens ( , ; ) is  old .", "Athens is old."),
        ("Rome (; the city)", "Rome (the city)"),
        ("Kyoto (京都, the capital) is", "Kyoto is"),
        ("\u201cyes\u201d, he\u2019d said\u2026", '"yes", he\'d said...'),
    ],
)
def test_tidy_mends_holes(holes: str, mended: str) -> None:
    assert prose.tidy(holes) == mended
    assert prose.tidy(mended) == mended


@pytest.mark.parametrize(
    "paragraph",
    [
        "Too short.",
        SENTENCE[:-1],
        SENTENCE.lower(),
        SENTENCE[:-1] + " {{x}}.",
        SENTENCE[:-1] + " είναι.",
        "Anna Bell, Carl Dunn, Emma Ford, Gene Hall, Iris Jones, Kate Lamb, Mona Nash, "
        "Olga Park.",
        "In 1990 1,234,567; in 1991 2,345,678; in 1992 3,456,789; in 1993 4,567,890 "
        "of the 5,678,901.",
    ],
)
def test_what_is_not_prose(paragraph: str) -> None:
    assert prose.is_prose(SENTENCE)
    assert not prose.is_prose(paragraph)


# --- WikiText and books -----------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (" A role @-@ playing game of 1 @,@ 500 @.@ 5 . ", "A role-playing game of"),
        ("The game 's plot , they say , didn 't end .", "The game's plot, they say,"),
        ('the " Nameless " , a unit', 'the "Nameless", a unit'),
        ('He said : " Go " and " stay " .', 'He said: "Go" and "stay".'),
        ("lit ( in Japan ; 1 – 2 ) .", "lit (in Japan; 1–2)."),
        ("the Years ' War began", "the Years' War began"),
    ],
)
def test_tokenisation_is_undone(tokens: str, text: str) -> None:
    assert prose.join_tokens(tokens).startswith(text)


def test_wikitext_articles_lose_headings_and_unknown_words() -> None:
    raw = " \n = Plain maskray = \n \n It is a ray . \n A <unk> ray . \n \n"
    raw += " = = Taxonomy = = \n \n Known since 1900 . \n"
    assert prose.wikitext_articles(raw) == [
        ("Plain maskray", ["It is a ray.", "Known since 1900."])
    ]


def test_book_is_unwrapped_without_licence_headings_and_verse() -> None:
    book = (
        "small print\r\n*** START OF THE PROJECT GUTENBERG EBOOK ***\r\n\r\n"
        'CHAPTER I.\r\n\r\n"Come in,"\r\nsaid the _old_ man.\r\n\r\n'
        "   A rose is\r\n   a rose is\r\n   a rose.\r\n\r\n"
        "He went out.\r\n\r\nEnd of Project Gutenberg's Book\r\n\r\nGive money."
    )
    assert prose.book_paragraphs(book) == [
        '"Come in," said the old man.',
        "He went out.",
    ]


def test_pieces_keep_every_paragraph_in_order() -> None:
    paragraphs = ["x" * n for n in range(1, 30)]
    runs = prose.pieces(paragraphs, 50)
    assert [p for run in runs for p in run] == paragraphs
    assert all(sum(map(len, run[:-1])) < 50 for run in runs)


# --- the whole --------------------------------------------------------------


def wikitext(*articles: tuple[str, int]) -> bytes:
    lines = (f" = {title} = \n \n {numbered(n)} \n" for title, n in articles)
    return gzip.compress("".join(lines).encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two hundred articles, of which three must go, and a book that is held out."""
    articles = [
        page(f"Article {n}", "\n".join(numbered(1000 * n + i) for i in range(3)))
        for n in range(200)
    ]
    (tmp_path / "enwik8.gz").write_bytes(
        gzip.compress("".join(articles).encode() + b"\xe4")  # cut within a letter
    )
    for name, data in {
        "train": wikitext(("Kept", 1), ("article 198", 2), ("Copy", 5)),
        "valid": wikitext(("Article 7", 3)),
        "test": wikitext(("ARTICLE - 8", 4), ("Other", 5)),
    }.items():
        (tmp_path / f"wikitext2.{name}.raw.gz").write_bytes(data)
    with tarfile.open(tmp_path / "gutenberg_18_books.tar.gz", "w:gz") as archive:
        for name, start in (
            (corpus.HELD_OUT_BOOK, 10**6),
            ("carroll-alice.txt", 2 * 10**6),
            ("milton-paradise.txt", 3 * 10**6),
        ):
            text = "\n\n".join(numbered(start + n) for n in range(400)).encode()
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return tmp_path


def test_held_out_titles_and_paragraphs_are_not_in_training(folder: Path) -> None:
    made = corpus.build_corpus(folder, processes=1)
    parts = (made.train, made.validation, made.test)
    titles = [{d.key for d in part} - {""} for part in parts]
    texts = [{p for d in part for p in d.paragraphs} for part in parts]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not titles[i] & titles[j]
        assert not texts[i] & texts[j]
    # The last 1 % of the articles, WikiText's validation, the end of the one book.
    assert titles[1] == {"article198", "article199", "article7"}
    assert titles[2] == {"article8", "other"}
    assert len(titles[0]) == 200 - 4 + 1
    books = sorted(p for d in made.validation if not d.title for p in d.paragraphs)
    assert 0 < len(books) < 200
    assert numbered(10**6 + 399) in books
    assert not any(numbered(3 * 10**6)[:40] in p for text in texts for p in text)


def test_same_input_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    outs = [tmp_path / "a", tmp_path / "b"]
    for out, processes in zip(outs, ("1", "2"), strict=True):
        corpus.main(
            [
                *("--text", str(folder), "--out", str(out)),
                *("--vocab-size", "400", "--processes", processes),
            ]
        )
    names = [
        *("train.txt", "validation.txt", "wikitext2_test.txt"),
        *("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
    ]
    for name in names:
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()
    text = (outs[0] / "train.txt").read_text(encoding="utf-8")
    documents = text.split(f"{corpus.END}\n")
    assert documents.pop() == ""
    assert all(d.endswith(".\n") and "\n\n" not in d for d in documents)


def test_missing_and_broken_files_are_named(folder: Path) -> None:
    (folder / "enwik8.gz").write_bytes(b"not gzip")
    with pytest.raises(InputError, match=r"enwik8\.gz"):
        corpus.build_corpus(folder, processes=1)
    with pytest.raises(InputError, match=r"wikitext2\.train"):
        corpus.build_corpus(folder / "absent", processes=1)
    (folder / "gutenberg_18_books.tar.gz").unlink()
    with pytest.raises(InputError, match="gutenberg"):
        corpus.build_corpus(folder, processes=1)


# --- tokenizer --------------------------------------------------------------

ODD = [
    "",
    "\x00\x01\x1f\x7f",
    "  two  spaces \r\n\t and a tab\n\n",
    "don't , won 't ( £20-25 ) .",
    "é e\u0301 京都 👩\u200d🚀 \ufeff\ufffd\ud7ff",
    "".join(map(chr, range(1, 1200))),
]


@pytest.mark.parametrize("size", [257, 300])
def test_tokenizer_round_trips_any_text(tmp_path: Path, size: int) -> None:
    texts = (numbered(n) + "\n" for n in range(50))
    corpus.save_tokenizer(corpus.train_tokenizer(texts, size), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in ODD:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_token_id not in ids
    assert len(tokenizer) == size
    assert tokenizer.bos_token == tokenizer.eos_token == corpus.END
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == size - 1
    assert tokenizer(f"a{corpus.END}b")["input_ids"][1] == size - 1
    assert tokenizer.unk_token is None
    assert tokenizer.pad_token is None


def test_vocabulary_must_hold_every_byte() -> None:
    with pytest.raises(InputError, match="257"):
        corpus.train_tokenizer(iter(["a"]), 256)
