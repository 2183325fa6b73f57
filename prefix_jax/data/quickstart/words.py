"""The values that an invented place can have, and which of them training never sees.

Each pool is a pair: the values seen in training, and the values held out of it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pool:
    """Values in two parts: `seen` everywhere, `held_out` in validation and test."""

    seen: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Both parts, the seen values first."""
        return self.seen + self.held_out


@dataclass(frozen=True)
class PlaceType:
    """A type of place: its value, head noun, article, setting and inhabitants."""

    value: str
    noun: str
    article: str
    setting: str  # "inland", "coast" or "works"
    old_world_only: bool
    population: tuple[int, int]


def _pool(seen: str, held_out: str) -> Pool:
    """Two comma-separated lists as a pool."""
    return Pool(*(tuple(w.strip() for w in s.split(",")) for s in (seen, held_out)))


NAME_FIRST = _pool(
    "Silver, White, Black, Red, Green, Blue, Brown, North, South, East, West, Old, "
    "Long, High, Low, Great, Little, King, Queen, Bishop, Iron, Oak, Apple, Wind, "
    "Summer, Spring, Snow, Sun, Star, Fair, Cold, Broad, Wolf, Fox, Eagle, Horse, "
    "Bell, Salt, Sand, Glass, Royal, Holy, Lion, Crystal",
    "Golden, Winter, Bird, Prince, Bear, Stone, Maple, Deep, Copper, Grey",
)

NAME_SECOND = _pool(
    "Hill, Field, Wood, Bridge, Mill, Bay, Cross, Gate, Well, Moor, Cliff, Brook, "
    "Valley, Point, Park, Lake, Haven, Landing, Marsh, Creek, Rock, Forest, Ridge, "
    "Springs",
    "Harbour, Falls, Grove, Hollow, Meadow, Heath",
)

RIVERS = _pool(
    "Otter, Thorn, Rose, Hart, Swan, Arrow, Pearl, Raven, Cedar, Dove, Stag, Lily, "
    "Heron, Clover, Ruby, Flint, Lark, Willow, Hawk, Salmon, Laurel, Robin, Ivory, "
    "Ash",
    "Wren, Amber, Fern, Hazel, Crane, Ivy, Finch, Alder",
)

OLD_COUNTRIES = ("England", "Scotland", "Wales", "Ireland")
NEW_COUNTRIES = (
    "Virginia",
    "Maine",
    "Pennsylvania",
    "Canada",
    "Ohio",
    "Texas",
    "California",
    "Australia",
    "New Zealand",
)
EARLY_NEW_COUNTRIES = ("Virginia", "Maine", "Pennsylvania", "Canada")
LANDLOCKED_COUNTRIES = ("Pennsylvania", "Ohio")
DIRECTIONS = {
    "northern": "north",
    "southern": "south",
    "eastern": "east",
    "western": "west",
    "central": "centre",
}

_VILLAGE = (120, 2900)
_TOWN = (3000, 48000)
_PORT = (2000, 60000)

TYPES = (
    PlaceType("village", "village", "a", "inland", False, _VILLAGE),
    PlaceType("small village", "village", "a", "inland", False, (60, 900)),
    PlaceType("farming village", "village", "a", "inland", False, _VILLAGE),
    PlaceType("old village", "village", "an", "inland", False, _VILLAGE),
    PlaceType("hill village", "village", "a", "inland", False, _VILLAGE),
    PlaceType("fishing village", "village", "a", "coast", False, _VILLAGE),
    PlaceType("town", "town", "a", "inland", False, _TOWN),
    PlaceType("small town", "town", "a", "inland", False, (1500, 9000)),
    PlaceType("market town", "town", "a", "inland", True, _TOWN),
    PlaceType("old town", "town", "an", "inland", False, _TOWN),
    PlaceType("university town", "town", "a", "inland", False, _TOWN),
    PlaceType("seaside town", "town", "a", "coast", False, _TOWN),
    PlaceType("mining town", "town", "a", "works", False, _TOWN),
    PlaceType("mill town", "town", "a", "works", False, _TOWN),
    PlaceType("industrial town", "town", "an", "works", False, _TOWN),
    PlaceType("port", "port", "a", "coast", False, _PORT),
    PlaceType("small port", "port", "a", "coast", False, (900, 9000)),
    PlaceType("fishing port", "port", "a", "coast", False, _PORT),
)
HELD_OUT_TYPES = (
    PlaceType("mining village", "village", "a", "works", False, _VILLAGE),
    PlaceType("old port", "port", "an", "coast", False, _PORT),
)
TYPE_BY_VALUE = {t.value: t for t in TYPES + HELD_OUT_TYPES}

# What a place is known for, by setting; each follows "known for its".
KNOWN_FOR = {
    "inland": _pool(
        "wool, cheese, apples, pottery, glass, beer, honey, roses, horses, sheep, "
        "bells, books, leather, wheat, gardens, old inns, horse fair, flower show, "
        "summer fair, cattle market, football club, boat race, brass band, bread",
        "silk, cherries, tennis club, music festival",
    ),
    "coast": _pool(
        "oysters, beaches, salt, fishing boats, fish market, sailing club, ships, "
        "football club, boat race, flower show, gardens, old inns, sea birds",
        "crabs, shipyards, tennis club",
    ),
    "works": _pool(
        "coal, iron, tin, copper, cotton, paper, steel, clocks, shoes, hats, engines, "
        "brass band, football club, summer fair, glass",
        "lead, carpets, bricks, music festival",
    ),
}


@dataclass(frozen=True)
class Landmark:
    """A landmark: its value, its article ("" in the plural) and where it can stand."""

    value: str
    article: str
    old_world_only: bool = False
    coast_only: bool = False
    village_too: bool = True


LANDMARKS = (
    Landmark("stone bridge", "a"),
    Landmark("wooden bridge", "a"),
    Landmark("clock tower", "a"),
    Landmark("windmill", "a"),
    Landmark("white church", "a"),
    Landmark("old church", "an"),
    Landmark("old fort", "an"),
    Landmark("war memorial", "a"),
    Landmark("public library", "a", village_too=False),
    Landmark("art gallery", "an", village_too=False),
    Landmark("history museum", "a"),
    Landmark("opera house", "an", village_too=False),
    Landmark("water tower", "a"),
    Landmark("bronze statue", "a"),
    Landmark("old prison", "an", village_too=False),
    Landmark("royal palace", "a", old_world_only=True, village_too=False),
    Landmark("ruined castle", "a", old_world_only=True),
    Landmark("Norman church", "a", old_world_only=True),
    Landmark("ancient abbey", "an", old_world_only=True),
    Landmark("round tower", "a", old_world_only=True),
    Landmark("stone circle", "a", old_world_only=True),
    Landmark("lighthouse", "a", coast_only=True),
    Landmark("two lighthouses", "", coast_only=True),
    Landmark("two windmills", ""),
    Landmark("two museums", "", village_too=False),
    Landmark("three stone bridges", ""),
    Landmark("three old churches", ""),
)
HELD_OUT_LANDMARKS = (
    Landmark("iron bridge", "an"),
    Landmark("old theatre", "an", village_too=False),
    Landmark("stone church", "a"),
    Landmark("railway museum", "a"),
    Landmark("two old churches", ""),
    Landmark("old castle", "an", old_world_only=True),
)
LANDMARK_BY_VALUE = {one.value: one for one in LANDMARKS + HELD_OUT_LANDMARKS}
