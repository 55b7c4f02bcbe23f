"""The inventory of the made-up world: concepts with their synonyms, names, opinions, topics.

A *concept* is a tuple of words that mean the same in this world. Two sentences about the same concept are
written with different words of it, so that whether they agree can only be found out by knowing the words, and
not by counting equal or different ones.
"""

from __future__ import annotations

WOMEN = ("Anna", "Mary", "Lucy", "Emma", "Clara", "Ruth", "Nina", "Vera")
MEN = ("Peter", "John", "Tom", "Paul", "Felix", "Hugo", "Oscar", "Victor")
PEOPLE = WOMEN + MEN

Concept = tuple[str, ...]

# What can be said of a person: a kind, and the concepts of that kind.
CONCEPTS: dict[str, tuple[Concept, ...]] = {
    "mood": (
        ("happy", "glad"),
        ("sad", "gloomy"),
        ("angry", "furious"),
        ("afraid", "scared"),
        ("tired", "sleepy"),
        ("proud", "honored"),
        ("calm", "relaxed"),
        ("hungry", "starving"),
    ),
    "place": (
        ("garden", "yard"),
        ("market", "shop"),
        ("harbor", "port"),
        ("forest", "woods"),
        ("street", "road"),
        ("house", "home"),
    ),
    "object": (
        ("cup", "mug"),
        ("coat", "jacket"),
        ("bag", "sack"),
        ("car", "auto"),
        ("rug", "carpet"),
        ("gift", "present"),
    ),
    "job": (
        ("doctor", "physician"),
        ("teacher", "tutor"),
        ("sailor", "seaman"),
        ("cook", "chef"),
        ("lawyer", "attorney"),
        ("guard", "sentry"),
    ),
    "hobby": (
        ("running", "jogging"),
        ("singing", "chanting"),
        ("sleeping", "napping"),
        ("talking", "chatting"),
        ("hiking", "trekking"),
        ("drawing", "sketching"),
    ),
}

# How a fact of each kind is said; {w} is a word of the concept. A retelling has words of its own, which no first
# telling uses: else the number of different words would give away whether both speak of facts of one kind.
PREDICATES: dict[str, tuple[str, ...]] = {
    "mood": ("was {w}", "felt {w}"),
    "place": ("sat in the {w}", "waited in the {w}"),
    "object": ("had a {w}", "held a {w}"),
    "job": ("worked as a {w}", "became a {w}"),
    "hobby": ("liked {w}", "enjoyed {w}"),
}
RETOLD_PREDICATES: dict[str, tuple[str, ...]] = {
    "mood": ("seemed {w}", "looked {w}"),
    "place": ("stayed at some {w}", "rested at some {w}"),
    "object": ("carried one {w}", "owned one {w}"),
    "job": ("served like any {w}", "earned money like any {w}"),
    "hobby": ("loved {w}", "preferred {w}"),
}

# The question about a fact of each kind; {p} is the person.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "mood": ("How did {p} feel?", "How was {p}?"),
    "place": ("Where was {p}?", "Where did {p} sit?"),
    "object": ("What did {p} have?", "What did {p} carry?"),
    "job": ("What was the job of {p}?", "What did {p} work as?"),
    "hobby": ("What did {p} like?", "What did {p} enjoy?"),
}

# Opinions by strength, from 1 star to 5 stars.
OPINIONS: dict[int, tuple[str, ...]] = {
    1: ("awful", "terrible", "horrible", "dreadful"),
    2: ("weak", "poor", "dull", "disappointing"),
    3: ("average", "ordinary", "passable", "middling"),
    4: ("good", "nice", "solid", "pleasant"),
    5: ("perfect", "superb", "brilliant", "wonderful"),
}
NEGATIVE = OPINIONS[1] + OPINIONS[2]
POSITIVE = OPINIONS[4] + OPINIONS[5]

REVIEWED: dict[str, tuple[str, ...]] = {
    "film": ("story", "acting", "music", "ending", "script"),
    "product": ("handle", "color", "price", "fabric", "battery"),
    "place": ("food", "service", "room", "soup", "waiter"),
    "app": ("menu", "update", "design", "screen", "sound"),
}

# Words by news topic, in the order of ag_news' labels.
TOPICS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "World",
        ("minister", "border", "treaty", "embassy", "troops", "election", "refugees", "capital"),
    ),
    ("Sports", ("team", "goal", "coach", "league", "match", "stadium", "medal", "striker")),
    ("Business", ("shares", "profit", "bank", "investors", "merger", "prices", "sales", "budget")),
    (
        "Sci/Tech",
        ("software", "planet", "robot", "chip", "laboratory", "internet", "telescope", "virus"),
    ),
)
NEWS_VERBS = ("discussed", "praised", "mentioned", "watched", "described")

# What an article of each dbpedia_14 class says, in the order of the labels; {t} is the title.
ARTICLES: tuple[tuple[str, ...], ...] = (
    ("{t} is a company that makes tools", "{t} is a firm that sells cars"),
    ("{t} is a school for children", "{t} is a college with many students"),
    ("{t} is a singer and composer", "{t} is a sculptor and artist"),
    ("{t} is an athlete who plays tennis", "{t} is a football player"),
    ("{t} is a politician and mayor", "{t} is a senator in parliament"),
    ("{t} is a ship of the navy", "{t} is a train with an engine"),
    ("{t} is a church with a tower", "{t} is a castle with thick walls"),
    ("{t} is a river in the north", "{t} is a mountain in the south"),
    ("{t} is a village in the valley", "{t} is a hamlet with few people"),
    ("{t} is a species of beetle", "{t} is a kind of bird with long wings"),
    ("{t} is a flower with white leaves", "{t} is a shrub that grows in sand"),
    ("{t} is an album with ten songs", "{t} is a record of the band"),
    ("{t} is a movie by the director", "{t} is a comedy on screen"),
    ("{t} is a magazine that is printed weekly", "{t} is a poem in three parts"),
)
TITLES = (
    "Alva",
    "Borin",
    "Corda",
    "Delmo",
    "Entra",
    "Farol",
    "Gilda",
    "Hovan",
    "Ister",
    "Jorin",
    "Kelda",
    "Lumen",
)
