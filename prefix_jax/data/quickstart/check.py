"""The reader: whether a reference says all of its source, and nothing else.

It knows nothing of the grammar. Each attribute has its expressions, as patterns; a
reference must hold exactly one expression of each attribute of the source, and
once those are taken away, only words that say nothing by themselves.
"""

import re

from prefix_jax.data.quickstart import words
from prefix_jax.data.quickstart.meanings import Meaning, parse

_FAME = r"\b(?:best known|known|famous) for its "
_RAILWAY = {
    "yes": r"\ba railway station\b|\bcan be reached by train\b",
    "no": r"\bno railway station\b|\bcannot be reached by train\b",
}

# Words that may be left over, whatever the source says ...
_EMPTY = frozenset(
    {"a", "an", "and", "but", "has", "in", "is", "it", "its", "of", "on"}
    | {"that", "the", "there", "was", "which"}
)
# ... and those that need an attribute to be about.
_OWN = {
    "type": frozenset({"called"}),
    "area": frozenset({"lies", "situated"}),
    "river": frozenset({"banks", "flows", "lies", "situated", "stands", "through"}),
    "population": frozenset({"home", "to", "with"}),
    "landmark": frozenset({"with"}),
    "railway station": frozenset({"with"}),
}


def faults(source: str, reference: str) -> list[str]:
    """What is wrong with a reference for a source; an empty list if nothing is.

    >>> faults("name : Silver Mill | type : port", "Silver Mill is a town.")
    ['type is expressed 0 times: port', 'says more than its source: town']
    """
    meaning = parse(source)
    found = _form_faults(reference)
    rest = reference
    for key in sorted(meaning, key=_reading_order):
        rest, count = re.subn(_pattern(key, meaning), " _ ", rest)
        if count != 1:
            found.append(f"{key} is expressed {count} times: {meaning[key]}")
    allowed = _EMPTY.union(*(_OWN.get(key, frozenset()) for key in meaning))
    if "type" in meaning:
        allowed |= {words.TYPE_BY_VALUE[meaning["type"]].noun}
    extra = [w for w in re.findall(r"[\w']+", rest) if w.lower() not in allowed]
    extra = [word for word in extra if word != "_"]
    if extra:
        found.append(f"says more than its source: {' '.join(extra)}")
    return found


def _reading_order(key: str) -> int:
    """Longer expressions first, so that no value is read inside another's."""
    order = ("name", "landmark", "railway station", "known for", "type", "area")
    return order.index(key) if key in order else len(order)


def _pattern(key: str, meaning: Meaning) -> str:
    """The expressions of one attribute of the meaning, as a regular expression."""
    value = meaning[key]
    exact = re.escape(value)
    if key == "name":
        return rf"\b{exact}\b"
    if key == "type":
        article = words.TYPE_BY_VALUE[value].article
        return rf"\b{article} {exact}\b|\b[Tt]he {exact} of\b"
    if key == "area":
        direction, country = value.split(" ", 1)
        noun = words.DIRECTIONS[direction]
        return rf"\b[Ii]n (?:{exact}|the {noun} of {re.escape(country)})\b"
    if key == "river":
        return rf"\b[Tt]he River {exact}\b"
    if key == "population":
        return rf"\bpopulation (?:of|is) {exact}\b|\b{exact} (?:people|inhabitants)\b"
    if key == "founded":
        return rf"\b(?:[Ff]ounded in|dates from|dates back to) {exact}\b"
    if key == "known for":
        return rf"(?i:{_FAME}){exact}\b"
    if key == "landmark":
        return _landmark_pattern(value)
    return _RAILWAY[value]


def _landmark_pattern(value: str) -> str:
    """A landmark with its article, and "its main landmark is" in the right number."""
    article = words.LANDMARK_BY_VALUE[value].article
    noun = f"{article} {value}" if article else value
    verb = "landmark is" if article else "landmarks are"
    return rf"(?:\b[Ii]ts (?:main|chief) {verb} )?\b{noun}\b"


def _form_faults(reference: str) -> list[str]:
    """Slips of spelling and punctuation that do not depend on the source."""
    slips = {
        "does not start with a capital": r"\A[^A-Z]",
        "does not end with a full stop": r"[^.]\Z",
        "has a stray space": r"\A\s|\s\Z|\s\s|\s[.,]",
        "has a doubled mark": r"[.,][.,]",
        "starts a sentence in lower case": r"\. [^A-Z]",
        "repeats a word": r"\b(\w+) \1\b",
        "has more than two sentences": r"\..*\..*\.",
    }
    return [f"it {name}" for name, slip in slips.items() if re.search(slip, reference)]
