"""From marked-up sources to plain English paragraphs: the cleaning of the corpus.

Every function is pure text in, text out. Each source has one entry that returns
a list of paragraphs (no line breaks inside): `wiki_paragraphs`,
`wikitext_articles`, `book_paragraphs`. A small model learns most from ordinary
sentences, so whatever is not one (a list, a table, a formula, a fragment) is left
out rather than repaired.
"""

import html
import re
from collections.abc import Iterable

_FLAGS = re.DOTALL | re.IGNORECASE

# --- characters -------------------------------------------------------------

_PLAIN = str.maketrans(
    {
        "\u00a0": " ",
        "\u2009": " ",
        "\u202f": " ",
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2026": "...",
        "\u2212": "-",
        "\u2010": "-",
        "\u2011": "-",
        "\u200b": None,
        "\u200e": None,
        "\ufeff": None,
        "\u00ad": None,
        "\t": " ",
    }
)
# Phonetic letters, and every script that is not Latin.
_FOREIGN = "\u0250-\u036f\u0370-\u1dff\u2c00-\ua71f\ua800-\ufdff\ufe70-\uffff"
_FOREIGN_LETTER = re.compile(f"[{_FOREIGN}\U00010000-\U0010ffff]")
_FOREIGN_BRACKET = re.compile(rf" ?\([^()]*[{_FOREIGN}][^()]*\)")


def tidy(text: str) -> str:
    """Plain quotes and spaces; mend the holes that removed markup leaves.

    >>> tidy("Athens (, ) is  old , isn\u2019t it")
    "Athens is old, isn't it"
    """
    text = text.translate(_PLAIN)
    text = _FOREIGN_BRACKET.sub("", text)
    text = re.sub(r"([(\[])[\s,;:/-]+", r"\1", text)
    text = re.sub(r"[\s,;:/]+([)\]])", r"\1", text)
    text = re.sub(r" ?(?:\(\)|\[\]|\"\")", "", text)
    text = re.sub(r" +([,;:.?!])(?=[\s\")]|$)", r"\1", text)
    text = re.sub(r",(?:\s*,)+", ",", text)
    text = re.sub(r",([.;:])", r"\1", text)
    return re.sub(r"\s+", " ", text).strip()


# --- which paragraphs are prose ---------------------------------------------

_DEBRIS = re.compile(r"[\x00|{}<>\\]|\[\[|\]\]|==|https?:|www\.|_{2,}|&[a-z]+;")
_OPENING = re.compile(r"[\"'(]*[A-Z0-9À-Þ\u00a3$]")
_ENDING = re.compile(r"[.!?][\"')\]]*$")
_COMMON = re.compile(
    r"\b(?:the|of|and|to|in|is|was|a|that|for|as|with|by|it|he|his|on|are|were|be|"
    r"at|from|or|an|which|I|you|she|her|they|had|have|not|but|this)\b"
)


def is_prose(paragraph: str, shortest: int = 80) -> bool:
    """True for a paragraph of complete English sentences without debris."""
    if len(paragraph) < shortest or _DEBRIS.search(paragraph):
        return False
    if not (_OPENING.match(paragraph) and _ENDING.search(paragraph)):
        return False
    if _FOREIGN_LETTER.search(paragraph):
        return False
    letters = sum(map(str.isalpha, paragraph))
    if letters < 0.7 * len(paragraph):  # figures, dates, formulae
        return False
    words = paragraph.count(" ") + 1
    return len(_COMMON.findall(paragraph)) >= 0.18 * words  # not a list of names


# --- Wikipedia's XML dump ---------------------------------------------------

_PAGE = re.compile(
    r"<title>([^<]*)</title>(?:(?!</page>).)*?<text[^>]*>([^<]*)</text>", re.DOTALL
)
_NAMESPACE = re.compile(
    r"(?:media|special|talk|user|user talk|wikipedia|image|mediawiki|template|help|"
    r"category|portal)(?: talk)?:",
    re.IGNORECASE,
)
_NOT_AN_ARTICLE = re.compile(
    r"list of|lists of|table of|timeline of|.*\(disambiguation\)|\d+s?( bc)?$",
    re.IGNORECASE,
)
_REDIRECT = re.compile(r"\s*#\s*redirect", re.IGNORECASE)
_AMBIGUOUS = re.compile(r"\{\{\s*(?:disambig|\w*dis\b|\w*cc\b)", re.IGNORECASE)
_END_MATTER = re.compile(
    r"^==+ *(?:see also|references?|external links?|further reading|notes?|sources?|"
    r"bibliography|footnotes|works|publications|discography|filmography|literature|"
    r"quotes|quotations|related (?:topics|articles)|trivia|links)\b.*?"
    r"(?=^==[^=]|\Z)",
    re.MULTILINE | re.IGNORECASE | re.DOTALL,
)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_GONE = re.compile(
    r"<(ref|gallery|timeline|table|div|imagemap|center)\b[^>/]*>.*?</\1\s*>|<ref[^>]*/>",
    _FLAGS,
)
_FORMULA = re.compile(r"<(math|pre|code|nowiki|tt|hiero)\b[^>]*>.*?</\1\s*>", _FLAGS)
_SQUARED = re.compile(r"<sup>\s*([23])\s*</sup>", re.IGNORECASE)
_POWER = re.compile(r"<sup\b[^>]*>", re.IGNORECASE)
_BREAK = re.compile(r"<br\s*/?>|</?p\b[^>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE)
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.DOTALL)
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_DROPPED_LINK = re.compile(
    r"\s*(?:image|file|media|category|[a-z]{2,3}|simple|be-x-old|zh-[a-z-]+|roa-rup)\s*:",
    re.IGNORECASE,
)
_EXTERNAL = re.compile(r"\[(?:https?|ftp|mailto):[^\s\]]*\s*([^\]]*)\]", re.IGNORECASE)
_URL = re.compile(r"(?:https?|ftp)://\S+", re.IGNORECASE)
_QUOTES = re.compile(r"'{2,}")
_NOT_TEXT = ("*", "#", ":", ";", "|", "!", "{", "}", "=", " ", "-", "_", "<")


def wiki_pages(xml: str) -> list[tuple[str, str]]:
    """(title, wiki text) of every article in a dump, redirects and lists left out."""
    pages = []
    for title, text in _PAGE.findall(xml):
        title = html.unescape(title)
        if _NAMESPACE.match(title) or _NOT_AN_ARTICLE.match(title):
            continue
        if _REDIRECT.match(text) or _AMBIGUOUS.search(text):
            continue
        pages.append((title, html.unescape(text)))
    return pages


def _link_text(match: re.Match[str]) -> str:
    target, *labels = match.group(1).split("|")
    if _DROPPED_LINK.match(target):
        return ""
    label = labels[-1] if labels else target.lstrip(":")
    return label or re.sub(r"^.*?:|\s*\([^)]*\)$|,.*$", "", target)


def _until_stable(pattern: re.Pattern[str], text: str) -> str:
    """Remove a nested construct from the inside out."""
    for _ in range(8):
        text, count = pattern.subn("", text)
        if not count:
            break
    return text


def strip_wiki_markup(text: str) -> str:
    r"""Wiki text without its markup; a formula becomes "\x00" so it can be dropped.

    >>> strip_wiki_markup("'''Ada''' wrote [[computer program|programs]].{{cite|x}}")
    'Ada wrote programs.'
    """
    text = text.replace("\x00", "")
    text = _GONE.sub("", _COMMENT.sub("", text))
    text = _FORMULA.sub("\x00", text)
    text = _SQUARED.sub(lambda m: "²³"[int(m.group(1)) - 2], text)
    text = _TAG.sub("", _BREAK.sub("\n", _POWER.sub("\x00", text)))
    # The dump escapes entities twice ("&amp;nbsp;"): this is the second layer.
    text = html.unescape(text)
    text = _until_stable(_TABLE, _until_stable(_TEMPLATE, text))
    for _ in range(3):  # image captions hold links
        text, count = _LINK.subn(_link_text, text)
        if not count:
            break
    text = _EXTERNAL.sub(lambda m: "" if m.group(1).isdigit() else m.group(1), text)
    return _QUOTES.sub("", _URL.sub("\x00", text))


def wiki_paragraphs(text: str) -> list[str]:
    """The prose paragraphs of one article's wiki text."""
    text = strip_wiki_markup(_END_MATTER.sub("", text))
    lines = (line for line in text.split("\n") if not line.startswith(_NOT_TEXT))
    return [line for line in map(tidy, lines) if is_prose(line)]


# --- WikiText-2 -------------------------------------------------------------

_TITLE = re.compile(r" = ([^=].*?) = $")


def join_tokens(text: str) -> str:
    """Undo WikiText's tokenisation of one line.

    >>> join_tokens('The " 2 @,@ 000 @-@ year " war , ( it \\'s said ) ended .')
    'The "2,000-year" war, (it\\'s said) ended.'
    """
    text = re.sub(r" @([-,.])@ ", r"\1", text.strip())
    text = re.sub(r" ('(?:s|re|ve|ll|d|m|t|S)\b)", r"\1", text)
    text = re.sub(r"(n) ('t\b)", r"\1\2", text)
    text = re.sub(r"(s) '(?= [a-z])(?![^']* ')", r"\1'", text)  # the Years' War
    # Quotes come in pairs: the odd ones open, the even ones close.
    for mark in ('"', "'"):
        parts = re.split(rf"(?:(?<=\s)|^){mark}(?=\s|$)", text)
        joined = parts[0]
        for i, part in enumerate(parts[1:]):
            opens = i % 2 == 0 and (i + 1 < len(parts) - 1)
            joined = (
                joined + mark + part.lstrip()
                if opens
                else joined.rstrip() + mark + part
            )
        text = joined
    text = re.sub(r" +([,;:.?!%)\]]|\.\.\.)(?=[\s\"'),.;:?!\]]|$)", r"\1", text)
    text = re.sub(r"([(\[$\u00a3\u20ac]) +", r"\1", text)
    text = re.sub(r"(?<=\d) (?=[\u00b0'\u2032\u2033])", "", text)
    text = re.sub(r"(?<=\w) / (?=\w)", "/", text)
    text = re.sub(r"(?<=\d) \u2013 (?=\d)", "\u2013", text)
    return re.sub(r"\s+", " ", text).strip()


def wikitext_articles(raw: str) -> list[tuple[str, list[str]]]:
    """(title, joined paragraphs) of each article; headings and <unk> left out."""
    articles: list[tuple[str, list[str]]] = []
    for line in raw.split("\n"):
        title = _TITLE.match(line)
        if title:
            articles.append((join_tokens(title.group(1)), []))
        elif not line.strip() or line.startswith(" = ") or "<unk>" in line:
            continue
        elif articles:
            articles[-1][1].append(join_tokens(line).translate(_PLAIN))
    return articles


# --- Gutenberg --------------------------------------------------------------

_LICENCE_HEAD = re.compile(
    r"^.*(?:START OF TH|END.?THE SMALL PRINT).*\n", re.MULTILINE | re.IGNORECASE
)
_LICENCE_TAIL = re.compile(
    r"^.*(?:End of (?:the |this )?Project Gutenberg|END OF TH\w+ PROJECT)",
    re.MULTILINE | re.IGNORECASE,
)
_BOOK_ENDING = re.compile(r"(?:[.!?:;,]|--)[\"')\]]*$")


def book_paragraphs(text: str) -> list[str]:
    """The prose of a book: licence, headings and verse left out, lines unwrapped.

    Short paragraphs stay, for dialogue is made of them.
    """
    text = _LICENCE_TAIL.split(text.replace("\r\n", "\n"))[0]
    text = _LICENCE_HEAD.split(text)[-1]
    paragraphs = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.split("\n") if line.strip()]
        if len(lines) > 1 and all(line.startswith("   ") for line in lines[1:]):
            continue  # verse, the heads of letters
        paragraph = tidy(re.sub(r"_([^_]+)_", r"\1", " ".join(lines)))
        if (
            len(paragraph) > 8
            and not paragraph.isupper()
            and _OPENING.match(paragraph)
            and _BOOK_ENDING.search(paragraph)
            and not _DEBRIS.search(paragraph)
        ):
            paragraphs.append(paragraph)
    return paragraphs


def pieces(paragraphs: Iterable[str], length: int) -> list[list[str]]:
    """Cut a long text into runs of whole paragraphs of about `length` characters."""
    runs: list[list[str]] = [[]]
    size = 0
    for paragraph in paragraphs:
        if size >= length:
            runs.append([])
            size = 0
        runs[-1].append(paragraph)
        size += len(paragraph)
    return [run for run in runs if run]
