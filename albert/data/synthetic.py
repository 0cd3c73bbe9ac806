"""Generated text with the layout of WikiText, for a trial without a download: days in the lives of fictional people.

What a model can learn from it: who works where, with what and on what; which name belongs to an article; how words are
inflected; and that a day begins in the morning, which is what sentence order is about.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from btard.protocol.hashing import stream

ARTICLES = {"train": 320, "validation": 32}

T = TypeVar("T")

# (who, at what place, uses what, makes what, verb, its past)
_TRADES = (
    ("baker", "bakery", "flour", "bread", "bake", "baked"),
    ("potter", "workshop", "clay", "jars", "shape", "shaped"),
    ("smith", "forge", "iron", "horseshoes", "forge", "forged"),
    ("weaver", "loft", "wool", "blankets", "weave", "wove"),
    ("brewer", "cellar", "barley", "beer", "brew", "brewed"),
    ("carpenter", "shed", "oak", "tables", "build", "built"),
    ("tailor", "shop", "linen", "coats", "sew", "sewed"),
    ("printer", "press", "paper", "posters", "print", "printed"),
    ("painter", "studio", "canvas", "portraits", "paint", "painted"),
    ("cook", "kitchen", "vegetables", "soup", "cook", "cooked"),
    ("miller", "mill", "wheat", "flour", "grind", "ground"),
    ("cobbler", "stall", "leather", "boots", "mend", "mended"),
    ("gardener", "greenhouse", "seeds", "roses", "grow", "grew"),
    ("jeweller", "vault", "silver", "rings", "polish", "polished"),
    ("chandler", "attic", "wax", "candles", "pour", "poured"),
    ("mason", "quarry", "stone", "arches", "carve", "carved"),
)
_WEATHER = {
    "winter": ("snow", "cold", "frozen"),
    "spring": ("rain", "mild", "green"),
    "summer": ("sunshine", "hot", "dusty"),
    "autumn": ("fog", "damp", "golden"),
}
_MORNING = (
    "Early in the morning {name} opened the {place} and lit the lamp .",
    "{name} woke before sunrise and walked to the {place} .",
    "At dawn the {who} unlocked the door of the {place} .",
    "In the morning {name} bought some {stuff} at the market of {town} .",
)
_FORENOON = (
    "Then {he} prepared the {stuff} with great care .",
    "After breakfast {he} carried the {stuff} into the {place} .",
    "Before noon the {who} {verbed} {number} {goods} from the {stuff} .",
    "Soon {helper} arrived and asked how to {verb} {goods} .",
)
_NOON = (
    "At noon {name} and {helper} shared a meal near the {landmark} .",
    "By midday the {weather} had reached the {landmark} .",
    "At lunch {helper} said that the {goods} were {quality} .",
    "When the bell rang at twelve , {helper} rested beside the {landmark} .",
)
_AFTERNOON = (
    "In the afternoon {he} sold the {goods} to {people} from {other} .",
    "Later {people} came to the {place} and admired the {goods} .",
    "During the afternoon {he} {verbed} more {goods} because {people} had asked for them .",
    "Some hours later {helper} delivered {number} {goods} to {other} .",
)
_EVENING = (
    "In the evening {name} counted the coins and closed the {place} .",
    "At sunset the {who} swept the {place} and went home .",
    "At night {name} dreamed of {quality} {goods} .",
    "Finally {he} thanked {helper} and put out the lamp .",
)
_OPENING = (
    "{name} ( born {year} in {town} ) was a {who} who {verbed} {goods} .",
    "{name} was a well known {who} of {town} in the {year}s .",
    "The {who} {name} lived in {town} , a {season_colour} town near the {landmark} .",
)
_ABOUT = (
    "A {who} needs {stuff} to {verb} {goods} .",
    "In {season} the air of {town} was {season_air} , and the {weather} lasted for {number} weeks .",
    "Most {people} of {other} bought their {goods} from {name} .",
    "{helper} , a cousin of {name} , learned to {verb} {goods} in the same {place} .",
)
_LANDMARKS = ("bridge", "fountain", "harbour", "lighthouse", "chapel", "orchard", "river", "castle", "windmill", "gate")
_PEOPLE = ("farmers", "sailors", "travellers", "soldiers", "students", "merchants", "neighbours", "musicians")
_QUALITIES = ("beautiful", "excellent", "expensive", "remarkable", "delicate", "heavy", "cheap", "famous")
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve", "twenty")
_BEGINNINGS = ("Ka", "Mo", "Te", "Ru", "Si", "Lo", "Va", "Ne", "Do", "Bri", "Fa", "Gel", "Hal", "Jo", "Per", "Wil")
_MIDDLES = ("la", "ri", "mo", "ne", "ta", "du", "vi", "so", "be", "go")
_HE_ENDS = ("n", "r", "k", "rd")
_SHE_ENDS = ("na", "ra", "lia", "sa")
_TOWN_ENDS = ("burg", "ton", "haven", "field", "mouth", "stead")


def synthetic_lines(seed: int, split: str) -> Iterator[str]:
    """Yield the lines of split `train` (about 500 KB) or `validation`, always the same ones for a seed."""
    for number in range(ARTICLES[split]):
        yield from _article(_Draw(seed, split, number))


class _Draw:
    """Choices from the random stream of one article."""

    def __init__(self, seed: int, split: str, number: int) -> None:
        self._rng = stream("albert", "synthetic", seed, split, number)

    def below(self, limit: int) -> int:
        # Only `random`, whose numbers are the same in every version of numpy.
        return int(self._rng.random() * limit)

    def of(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def name(self, endings: Sequence[str]) -> str:
        return self.of(_BEGINNINGS) + self.of(_MIDDLES) + self.of(endings)


def _article(draw: _Draw) -> Iterator[str]:
    who, place, stuff, goods, verb, verbed = draw.of(_TRADES)
    she = draw.below(2) == 1
    lasting = {
        "who": who,
        "place": place,
        "stuff": stuff,
        "goods": goods,
        "verb": verb,
        "verbed": verbed,
        "he": "she" if she else "he",
        "name": draw.name(_SHE_ENDS if she else _HE_ENDS),
        "helper": draw.name(_HE_ENDS if she else _SHE_ENDS),
        "town": draw.name(_TOWN_ENDS),
        "other": draw.name(_TOWN_ENDS),
        "landmark": draw.of(_LANDMARKS),
        "year": str(1700 + 10 * draw.below(25)),
    }

    def sentence(templates: Sequence[str], season: str) -> str:
        weather, air, colour = _WEATHER[season]
        filled = draw.of(templates).format(
            **lasting,
            season=season,
            weather=weather,
            season_air=air,
            season_colour=colour,
            people=draw.of(_PEOPLE),
            quality=draw.of(_QUALITIES),
            number=draw.of(_NUMBERS),
        )
        return filled[0].upper() + filled[1:]

    yield from ("", f" = {lasting['name']} of {lasting['town']} = ", "")
    season = draw.of(tuple(_WEATHER))
    yield f" {sentence(_OPENING, season)} {sentence(_ABOUT, season)} {sentence(_ABOUT, season)} "
    for season in _WEATHER:
        yield from ("", f" = = {season.capitalize()} = = ", "")
        for _ in range(1 + draw.below(2)):
            day = (_MORNING, _FORENOON, _NOON, _AFTERNOON, _EVENING)
            yield " " + " ".join(sentence(templates, season) for templates in day) + " "
            yield ""
