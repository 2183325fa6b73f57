"""Meanings: which attributes an invented place is described by, and their values.

A meaning is a dict from attribute to value, in the order of `KEYS`. All eight facts
of a place are drawn together, so that they suit each other (no Norman church in
Texas), and then some of them are told.
"""

import random
from itertools import combinations

from prefix_jax.data.quickstart import words

Meaning = dict[str, str]

KEYS = (
    "name",
    "type",
    "area",
    "river",
    "population",
    "founded",
    "known for",
    "landmark",
    "railway station",
)
FACTS = KEYS[1:]

# How often a fact is told, relative to the others: a description usually says what
# the place is and where.
_SHARES = (6.0, 4.0, 2.5, 2.0, 2.0, 2.0, 2.0, 1.5)
_TOLD: dict[str, float] = dict(zip(FACTS, _SHARES, strict=True))
_NUMBER_TOLD = ((2, 10), (3, 30), (4, 35), (5, 25))

# How often a held-out meaning takes an unseen value, where there is one to take.
_UNSEEN_NAME_WORD = 0.5
_UNSEEN_VALUE = 0.35
_HELD_OUT_SUBSET_COUNT = 21


def linearise(meaning: Meaning) -> str:
    """The meaning as a source: `name : Silver Mill | type : port | river : Wren`."""
    return " | ".join(f"{key} : {meaning[key]}" for key in KEYS if key in meaning)


def parse(source: str) -> Meaning:
    """The meaning of a source, the inverse of `linearise`."""
    return dict(field.split(" : ", 1) for field in source.split(" | "))


def held_out_subsets(rng: random.Random) -> frozenset[frozenset[str]]:
    """The sets of facts that training never tells together, a tenth of them all."""
    subsets = [
        frozenset(subset)
        for size, _ in _NUMBER_TOLD
        for subset in combinations(FACTS, size)
        if size > 2 and "type" in subset
    ]
    return frozenset(rng.sample(subsets, _HELD_OUT_SUBSET_COUNT))


def draw_subset(rng: random.Random) -> frozenset[str]:
    """Two to five facts to tell."""
    sizes, weights = zip(*_NUMBER_TOLD, strict=True)
    size = rng.choices(sizes, weights)[0]
    told: list[str] = []
    while len(told) < size:
        left = [fact for fact in FACTS if fact not in told]
        told.append(rng.choices(left, [_TOLD[fact] for fact in left])[0])
    return frozenset(told)


def draw_place(rng: random.Random, *, unseen: bool) -> Meaning:
    """A place with all of its facts; `unseen` lets it take held-out values."""
    old_world = rng.random() < 0.5
    types = [t for t in words.TYPES if old_world or not t.old_world_only]
    kind = rng.choice(types)
    if unseen and rng.random() < _UNSEEN_VALUE / 2:
        kind = rng.choice(words.HELD_OUT_TYPES)
    area = _draw_area(rng, kind, old_world=old_world)
    name = _draw_name(rng, unseen=unseen)
    return {
        "name": name,
        "type": kind.value,
        "area": area,
        "river": _draw_river(rng, name, unseen=unseen),
        "population": _draw_population(rng, kind.population),
        "founded": _draw_year(rng, kind, area),
        "known for": _draw_from(rng, words.KNOWN_FOR[kind.setting], unseen=unseen),
        "landmark": _draw_landmark(rng, kind, old_world=old_world, unseen=unseen),
        "railway station": rng.choice(("yes", "no")),
    }


def tell(place: Meaning, facts: frozenset[str]) -> Meaning:
    """The part of a place that is told: its name and the given facts."""
    return {key: place[key] for key in KEYS if key == "name" or key in facts}


def _draw_from(rng: random.Random, pool: words.Pool, *, unseen: bool) -> str:
    """A value of the pool, sometimes a held-out one where `unseen` allows it."""
    if unseen and rng.random() < _UNSEEN_VALUE:
        return rng.choice(pool.held_out)
    return rng.choice(pool.seen)


def _draw_name(rng: random.Random, *, unseen: bool) -> str:
    """Two words that make a name, one of them held out in half the unseen names."""
    first = rng.choice(words.NAME_FIRST.seen)
    second = rng.choice(words.NAME_SECOND.seen)
    if unseen and rng.random() < _UNSEEN_NAME_WORD:
        if rng.random() < 0.6:
            first = rng.choice(words.NAME_FIRST.held_out)
        else:
            second = rng.choice(words.NAME_SECOND.held_out)
    return f"{first} {second}"


def _draw_river(rng: random.Random, name: str, *, unseen: bool) -> str:
    """A river that shares no word with the name of the place."""
    while True:
        river = _draw_from(rng, words.RIVERS, unseen=unseen)
        if river not in name.split():
            return river


def _draw_area(rng: random.Random, kind: words.PlaceType, *, old_world: bool) -> str:
    """A part of a country, one with a coast where the type asks for it."""
    countries = words.OLD_COUNTRIES if old_world else words.NEW_COUNTRIES
    directions = tuple(words.DIRECTIONS)
    if kind.setting == "coast":
        countries = [c for c in countries if c not in words.LANDLOCKED_COUNTRIES]
        directions = [d for d in directions if d != "central"]
    return f"{rng.choice(directions)} {rng.choice(countries)}"


def _draw_year(rng: random.Random, kind: words.PlaceType, area: str) -> str:
    """The year of foundation: works are not old, and what is called old is."""
    country = area.split(" ", 1)[1]
    earliest, latest = 950, 1890
    if country in words.NEW_COUNTRIES:
        earliest = 1650 if country in words.EARLY_NEW_COUNTRIES else 1790
    if kind.setting == "works":
        earliest = max(earliest, 1700)
    if kind.value.startswith("old"):
        latest = max(1700, earliest + 60)
    return str(rng.randint(earliest, latest))


def _draw_population(rng: random.Random, bounds: tuple[int, int]) -> str:
    """A rounded number of inhabitants, small ones more often: "840" or "12,500"."""
    low, high = bounds
    number = low * (high / low) ** rng.random()
    step = 10 if number < 1000 else 100
    return f"{max(step, round(number / step) * step):,}"


def _draw_landmark(
    rng: random.Random, kind: words.PlaceType, *, old_world: bool, unseen: bool
) -> str:
    """A landmark that can stand in such a place."""
    held_out = unseen and rng.random() < _UNSEEN_VALUE
    landmarks = words.HELD_OUT_LANDMARKS if held_out else words.LANDMARKS
    possible = [
        one.value
        for one in landmarks
        if (old_world or not one.old_world_only)
        and (kind.setting == "coast" or not one.coast_only)
        and (kind.noun != "village" or one.village_too)
    ]
    return rng.choice(possible)
