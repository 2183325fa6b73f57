"""Phrases: the ways to say one fact, or one group of facts, inside a sentence."""

import random
from collections.abc import Sequence

from prefix_jax.data.quickstart import words
from prefix_jax.data.quickstart.meanings import Meaning

PLACE = ("area", "river")
POSSESSIONS = ("population", "landmark", "railway station")


def with_article(value: str) -> str:
    """A landmark or type with its article: "an old fort", "two windmills"."""
    known = words.LANDMARK_BY_VALUE.get(value) or words.TYPE_BY_VALUE[value]
    return f"{known.article} {value}".strip()


def area(meaning: Meaning, rng: random.Random) -> str:
    """ "northern Wales", or for the older countries "the north of Wales"."""
    direction, country = meaning["area"].split(" ", 1)
    if country in words.OLD_COUNTRIES and rng.random() < 0.3:
        return f"the {words.DIRECTIONS[direction]} of {country}"
    return meaning["area"]


def where(meaning: Meaning, facts: Sequence[str], rng: random.Random) -> str:
    """The area and river among the facts: "on the River Wren in northern Wales"."""
    parts = []
    if "river" in facts:
        banks = "the banks of " if rng.random() < 0.15 else ""
        parts.append(f"on {banks}the River {meaning['river']}")
    if "area" in facts:
        parts.append(f"in {area(meaning, rng)}")
    if len(parts) == 2 and rng.random() < 0.3:
        parts.reverse()
    return " ".join(parts)


def lies(meaning: Meaning, facts: Sequence[str], rng: random.Random) -> str:
    """A verb phrase for the area, the river or both."""
    place = where(meaning, facts, rng)
    verbs = ["lies", "lies", "is"]
    verbs.append("stands" if place.startswith("on") else "is situated")
    return f"{rng.choice(verbs)} {place}"


def station(meaning: Meaning) -> str:
    """ "a railway station" or "no railway station"."""
    return f"{'a' if meaning['railway station'] == 'yes' else 'no'} railway station"


def possession(fact: str, meaning: Meaning, rng: random.Random) -> str:
    """What a place has, as a noun phrase that follows "has" or "with"."""
    if fact == "population":
        number = meaning["population"]
        return rng.choice((f"a population of {number}", f"{number} inhabitants"))
    if fact == "landmark":
        return with_article(meaning["landmark"])
    return station(meaning)


def possessions(facts: Sequence[str], meaning: Meaning, rng: random.Random) -> str:
    """Several things a place has, as one list; the lack of a station comes last."""
    had = [fact for fact in POSSESSIONS if fact in facts]
    lacks_station = "railway station" in had and meaning["railway station"] == "no"
    if lacks_station and len(had) > 1:
        given = [possession(fact, meaning, rng) for fact in had[:-1]]
        return f"{enumerate_(given)} but {station(meaning)}"
    if had[-2:] == ["landmark", "railway station"] and rng.random() < 0.3:
        had[-2:] = reversed(had[-2:])
    return enumerate_([possession(fact, meaning, rng) for fact in had])


def enumerate_(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *start, last = parts
    return f"{', '.join(start)} and {last}" if start else last


def fame(meaning: Meaning, rng: random.Random) -> str:
    """ "known for its wool", with synonyms."""
    adjective = rng.choice(("known", "known", "famous", "famous", "best known"))
    return f"{adjective} for its {meaning['known for']}"


def home_to(meaning: Meaning) -> str:
    """ "is home to 2,400 people"."""
    return f"is home to {meaning['population']} people"


def reached(meaning: Meaning) -> str:
    """ "can be reached by train" or "cannot be reached by train"."""
    can = "can" if meaning["railway station"] == "yes" else "cannot"
    return f"{can} be reached by train"


def verb_phrase(fact: str, meaning: Meaning, rng: random.Random) -> str:
    """One fact as a verb phrase whose subject is the place."""
    if fact in PLACE:
        return lies(meaning, [fact], rng)
    if fact == "founded":
        verbs = ("was founded in", "was founded in", "dates from", "dates back to")
        return f"{rng.choice(verbs)} {meaning['founded']}"
    if fact == "known for":
        return f"is {fame(meaning, rng)}"
    if fact == "population" and rng.random() < 0.25:
        return home_to(meaning)
    if fact == "railway station" and rng.random() < 0.3:
        return reached(meaning)
    return f"has {possession(fact, meaning, rng)}"


def predicate(facts: Sequence[str], meaning: Meaning, rng: random.Random) -> str:
    """Facts (no type among them) as one coordinated predicate of the place."""
    had = [fact for fact in POSSESSIONS if fact in facts]
    others = [fact for fact in facts if fact not in PLACE and fact not in had]
    phrases = [verb_phrase(fact, meaning, rng) for fact in others]
    if len(had) == 1:
        phrases.append(verb_phrase(had[0], meaning, rng))
    elif had:
        if had[0] == "population" and rng.random() < 0.2:
            phrases.append(home_to(meaning))
            had = had[1:]
        elif had[-1] == "railway station" and rng.random() < 0.2:
            phrases.append(reached(meaning))
            had = had[:-1]
        phrases.append(f"has {possessions(had, meaning, rng)}")
    rng.shuffle(phrases)
    # A predicate that opens with the founding and closes with the trains reads best.
    phrases.sort(key=lambda phrase: not phrase.startswith(("was", "dates")))
    phrases.sort(key=lambda phrase: " no " in phrase or phrase.startswith("can"))
    place = [fact for fact in PLACE if fact in facts]
    if place:
        phrases.insert(0, lies(meaning, place, rng))
    return _coordinate(phrases)


def _coordinate(phrases: Sequence[str]) -> str:
    """Joins verb phrases; "but" before something missing after something present."""
    if len(phrases) == 2:
        first, last = phrases
        missing = last.startswith(("has no ", "cannot"))
        if missing and first.startswith(("has", "is known", "is famous", "is best")):
            return f"{first} but {last}"
    return enumerate_(phrases)


def modifier(facts: Sequence[str], meaning: Meaning, rng: random.Random) -> str:
    """Facts as a modifier after a noun: one fact, or several possessions.

    >>> modifier(["founded"], meaning, rng)
    'founded in 1742'
    """
    if facts[0] == "founded":
        return f"founded in {meaning['founded']}"
    if facts[0] == "known for":
        return fame(meaning, rng)
    return f"with {possessions(facts, meaning, rng)}"


def opener(fact: str, meaning: Meaning, rng: random.Random) -> str:
    """A fact as the phrase that opens a sentence, before its comma."""
    if fact == "river":
        return f"Situated {where(meaning, ['river'], rng)}"
    text = modifier([fact], meaning, rng)
    return text[0].upper() + text[1:]
