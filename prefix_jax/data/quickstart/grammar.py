"""The grammar: a meaning as one or two sentences of encyclopaedic English.

Facts are shared out between the sentences, each sentence takes one of several
shapes, and `phrases.py` words the facts. Every choice is made by the generator that
is passed in, so a seed decides the text.
"""

import random
from collections.abc import Callable, Sequence

from prefix_jax.data.quickstart import phrases, words
from prefix_jax.data.quickstart.meanings import FACTS, Meaning

_MODIFIERS = ("population", "founded", "known for", "landmark", "railway station")

_TRIES_FOR_STYLE = 20

# Chance that the first sentence says so many facts, by how many there are in all.
_FIRST_SENTENCE = {
    2: {2: 1.0},
    3: {3: 0.5, 2: 0.5},
    4: {4: 0.15, 3: 0.4, 2: 0.45},
    5: {4: 0.2, 3: 0.6, 2: 0.2},
}


def realise(meaning: Meaning, rng: random.Random) -> str:
    """A description of the place that says every fact of the meaning.

    >>> realise({"name": "Silver Mill", "type": "port", "founded": "1742"}, rng)
    'Silver Mill is a port that was founded in 1742.'
    """
    text = ""
    for _ in range(_TRIES_FOR_STYLE):
        first, second = _share_out(meaning, rng)
        sentences = [_opening(meaning, first, rng)]
        if second:
            sentences.append(_sequel(meaning, second, rng))
        text = " ".join(f"{one[0].upper()}{one[1:]}." for one in sentences)
        if not _repeats_its_verb(sentences):
            break
    return text


def _repeats_its_verb(sentences: Sequence[str]) -> bool:
    """Whether two sentences both say "has", "lies", "stands" or "situated"."""
    verbs = {"has", "lies", "stands", "situated"}
    said = [verbs.intersection(sentence.lower().split()) for sentence in sentences]
    return len(said) == 2 and bool(said[0] & said[1])


def _share_out(
    meaning: Meaning, rng: random.Random
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The facts of the first sentence and those of the second."""
    facts = [fact for fact in FACTS if fact in meaning]
    counts = _FIRST_SENTENCE[len(facts)]
    count = rng.choices(list(counts), list(counts.values()))[0]
    # What the place is comes first; where it is, usually; the rest as it falls.
    weight = {"type": -1.0, "area": rng.random() * 0.5, "river": rng.random() * 0.8}
    order = sorted(facts, key=lambda fact: weight.get(fact, rng.random()))
    first, second = order[:count], order[count:]
    # "was founded, has a tower, is known for its bells and lies on ..." is too much
    # for a sentence.
    other = [fact for fact in first if fact in _MODIFIERS]
    if len(other) == 4 or (len(other) == 3 and len(first) == 4):
        moved = other[-1]
        first.remove(moved)
        second.append(moved)
    return tuple(first), tuple(second)


# --- first sentences


def _opening(meaning: Meaning, facts: Sequence[str], rng: random.Random) -> str:
    """A sentence that introduces the place by its name."""
    rest = [fact for fact in facts if fact in _MODIFIERS]
    placed = [fact for fact in facts if fact in phrases.PLACE]
    shapes: dict[Callable[..., str], float]
    if "type" in facts:
        shapes = {_is_a: 5.0}
        if rest or placed:
            shapes[_the_type_of] = 2.0
        if rest and (placed or " " in meaning["type"]):
            shapes[_apposition] = 2.0
        if placed and not rest:
            shapes[_there_is] = 0.6
        if "river" in facts and len(rest) < 2:
            shapes[_river_flows] = 1.2
            shapes[_there_lies] = 0.6
        elif "area" in facts and len(rest) < 2:
            shapes[_there_lies] = 0.8
    else:
        shapes = {_plain: 4.0}
        if placed and rest:
            shapes[_placed_name] = 1.5
        if "river" in facts:
            shapes[_river_flows_plain] = 0.8
    shape = rng.choices(list(shapes), list(shapes.values()))[0]
    return shape(meaning, placed, rest, rng)


def _is_a(
    meaning: Meaning, placed: list[str], rest: list[str], rng: random.Random
) -> str:
    """ "Founded in 1742, Silver Mill is a port in northern Wales."""
    opener = ""
    if rng.random() < 0.3:
        fitting = ("founded", "known for", "river")
        opener = _take_opener(fitting, meaning, placed, rest, rng)
    return f"{opener}{meaning['name']} is {_noun_phrase(meaning, placed, rest, rng)}"


def _the_type_of(
    meaning: Meaning, placed: list[str], rest: list[str], rng: random.Random
) -> str:
    """ "The port of Silver Mill in northern Wales was founded in 1742"."""
    subject = f"the {meaning['type']} of {meaning['name']}"
    if rest and placed == ["area"] and rng.random() < 0.5:
        subject = f"{subject} in {phrases.area(meaning, rng)}"
        placed = []
    return f"{subject} {phrases.predicate(placed + rest, meaning, rng)}"


def _apposition(
    meaning: Meaning, placed: list[str], rest: list[str], rng: random.Random
) -> str:
    """ "Silver Mill, a port in northern Wales, was founded in 1742"."""
    noun = _noun_phrase(meaning, placed, [], rng)
    return f"{meaning['name']}, {noun}, {phrases.predicate(rest, meaning, rng)}"


def _river_flows(
    meaning: Meaning, placed: list[str], rest: list[str], rng: random.Random
) -> str:
    """ "The River Wren flows through Silver Mill, a port in northern Wales"."""
    placed = [fact for fact in placed if fact != "river"]
    noun = _noun_phrase(meaning, placed, rest, rng)
    return f"the River {meaning['river']} flows through {meaning['name']}, {noun}"


def _there_lies(
    meaning: Meaning, placed: list[str], rest: list[str], rng: random.Random
) -> str:
    """ "On the River Wren in northern Wales lies Silver Mill, a port"."""
    place = phrases.where(meaning, placed, rng)
    if not rest:
        return f"{place} lies the {meaning['type']} of {meaning['name']}"
    noun = _noun_phrase(meaning, [], rest, rng)
    return f"{place} lies {meaning['name']}, {noun}"


def _there_is(
    meaning: Meaning, placed: list[str], _rest: list[str], rng: random.Random
) -> str:
    """ "There is a port called Silver Mill on the River Wren"."""
    noun = phrases.with_article(meaning["type"])
    place = phrases.where(meaning, placed, rng)
    return f"there is {noun} called {meaning['name']} {place}"


def _plain(
    meaning: Meaning, placed: list[str], rest: list[str], rng: random.Random
) -> str:
    """ "Known for its wool, Silver Mill lies on the River Wren"."""
    opener = ""
    if rng.random() < 0.3:
        opener = _take_opener(("founded", "known for"), meaning, placed, rest, rng)
    return f"{opener}{meaning['name']} {phrases.predicate(placed + rest, meaning, rng)}"


def _placed_name(
    meaning: Meaning, placed: list[str], rest: list[str], rng: random.Random
) -> str:
    """ "Silver Mill, on the River Wren, has a population of 2,400"."""
    place = phrases.where(meaning, placed, rng)
    return f"{meaning['name']}, {place}, {phrases.predicate(rest, meaning, rng)}"


def _river_flows_plain(
    meaning: Meaning, placed: list[str], rest: list[str], rng: random.Random
) -> str:
    """ "The River Wren flows through Silver Mill, which was founded in 1742"."""
    facts = [fact for fact in placed + rest if fact != "river"]
    start = f"the River {meaning['river']} flows through {meaning['name']}"
    if not facts:
        return start
    return f"{start}, which {phrases.predicate(facts, meaning, rng)}"


def _take_opener(
    fitting: Sequence[str],
    meaning: Meaning,
    placed: list[str],
    rest: list[str],
    rng: random.Random,
) -> str:
    """A fitting fact moved out of the lists to the front: "Founded in 1742, "."""
    facts = [fact for fact in placed + rest if fact in fitting]
    if not facts:
        return ""
    fact = rng.choice(facts)
    # What is left must carry a sentence.
    if set(placed + rest) <= {fact, "railway station"}:
        return ""
    (placed if fact in placed else rest).remove(fact)
    return f"{phrases.opener(fact, meaning, rng)}, "


def _noun_phrase(
    meaning: Meaning, placed: list[str], rest: list[str], rng: random.Random
) -> str:
    """ "a port in northern Wales with a railway station"."""
    noun = phrases.with_article(meaning["type"])
    rest = list(rest)
    if "population" in rest and rng.random() < 0.3:
        rest.remove("population")
        people = rng.choice(("people", "inhabitants"))
        noun = f"{noun} of {meaning['population']} {people}"
    if placed:
        noun = f"{noun} {phrases.where(meaning, placed, rng)}"
    if not rest:
        return noun
    others = [fact for fact in rest if fact not in phrases.POSSESSIONS]
    if (len(rest) > 1 and others) or rng.random() < 0.2:
        return f"{noun} that {phrases.predicate(rest, meaning, rng)}"
    # After a place, "known for" would seem to speak of the place.
    comma = "," if placed and others else ""
    return f"{noun}{comma} {phrases.modifier(rest, meaning, rng)}"


# --- second sentences


def _sequel(meaning: Meaning, facts: Sequence[str], rng: random.Random) -> str:
    """A sentence about a place that has been introduced."""
    it = _anaphor(meaning, rng)
    facts = list(facts)
    rng.shuffle(facts)
    if len(facts) == 1 and rng.random() < 0.5:
        return _clause(facts[0], it, meaning, rng)
    if len(facts) == 2 and rng.random() < 0.3:
        pair = _two_clauses(facts, it, meaning, rng)
        if pair:
            return pair
    opener = ""
    if rng.random() < 0.2:
        opener = _take_opener(("founded",), meaning, [], facts, rng)
    return f"{opener}{it} {phrases.predicate(facts, meaning, rng)}"


def _two_clauses(
    facts: Sequence[str], it: str, meaning: Meaning, rng: random.Random
) -> str | None:
    """Two facts in two clauses, where "it" cannot be misunderstood; else None."""
    if {"population", "landmark"} == set(facts):
        parts = [_clause(fact, it, meaning, rng) for fact in facts]
        return " and ".join(parts)
    for first, second in (facts, facts[::-1]):
        clause = _clause(first, it, meaning, rng)
        predicate = phrases.verb_phrase(second, meaning, rng)
        if first == "population" and second not in phrases.PLACE:
            return f"{clause}, and it {predicate}"
        if first == "river" and it != "it":
            return f"{clause}, which {predicate}"
    return None


def _anaphor(meaning: Meaning, rng: random.Random) -> str:
    """ "it", or "the village" where the meaning tells the type."""
    if "type" in meaning and rng.random() < 0.35:
        return f"the {words.TYPE_BY_VALUE[meaning['type']].noun}"
    return "it"


def _clause(fact: str, it: str, meaning: Meaning, rng: random.Random) -> str:
    """One fact as a clause of its own, mostly with another subject than the place."""
    if fact == "landmark":
        landmark = meaning["landmark"]
        plural = not words.LANDMARK_BY_VALUE[landmark].article
        adjective = rng.choice(("main", "main", "chief"))
        verb = "landmarks are" if plural else "landmark is"
        return f"its {adjective} {verb} {phrases.with_article(landmark)}"
    if fact == "population":
        return f"its population is {meaning['population']}"
    if fact == "river":
        return f"the River {meaning['river']} flows through {it}"
    if fact == "railway station" and it.startswith("the "):
        return f"there is {phrases.station(meaning)} in {it}"
    return f"{it} {phrases.verb_phrase(fact, meaning, rng)}"
