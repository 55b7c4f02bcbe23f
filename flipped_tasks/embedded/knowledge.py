"""What is always so in the made-up world: tools, animals, trades, causes, quantities, word senses."""

from __future__ import annotations

# tool -> what it is for
TOOLS = (
    ("knife", "cut bread"),
    ("spoon", "stir soup"),
    ("broom", "sweep the floor"),
    ("key", "open the door"),
    ("needle", "sew cloth"),
    ("pen", "write a letter"),
    ("hammer", "hit a nail"),
    ("lamp", "light the room"),
    ("soap", "wash the hands"),
    ("rope", "tie the boat"),
    ("oven", "bake a cake"),
    ("ladder", "reach the roof"),
)

# animal -> where it lives, what it eats
ANIMALS = (
    ("cow", "barn", "grass"),
    ("bird", "nest", "seeds"),
    ("bee", "hive", "nectar"),
    ("dog", "kennel", "bones"),
    ("horse", "stable", "hay"),
    ("rabbit", "burrow", "carrots"),
    ("bear", "cave", "berries"),
    ("spider", "web", "flies"),
)

# thing -> where it is kept
KEPT = (
    ("milk", "fridge"),
    ("money", "wallet"),
    ("shirt", "closet"),
    ("boat", "river"),
    ("bed", "bedroom"),
    ("bread", "bakery"),
    ("medicine", "hospital"),
    ("plane", "airport"),
    ("tree", "park"),
    ("picture", "museum"),
)

# cause -> effect; {p} is a person
CAUSES = (
    ("{p} dropped the glass", "the glass broke"),
    ("{p} forgot the lunch", "the stomach of {p} growled"),
    ("{p} lost the keys", "{p} could not get in"),
    ("{p} studied hard", "{p} passed the test"),
    ("{p} touched the stove", "{p} burned a finger"),
    ("{p} broke a leg", "{p} needed crutches"),
    ("{p} won the race", "{p} got a trophy"),
    ("{p} missed the bus", "{p} came late"),
    ("{p} watered the seeds", "the plants grew"),
    ("{p} left the ice in the sun", "the ice melted"),
    ("{p} told a joke", "the friends laughed"),
    ("{p} lit a fire", "smoke went up"),
    ("{p} walked in the rain", "the hair of {p} got wet"),
    ("{p} ate too much", "{p} had a stomach ache"),
)

# what happens to a person -> the mood that follows (index into CONCEPTS["mood"])
EVENTS = (
    ("{p} got a letter from a friend", 0),
    ("{p} lost the dog", 1),
    ("{p} was robbed by a thief", 2),
    ("{p} saw a ghost", 3),
    ("{p} worked all night", 4),
    ("{p} received a prize", 5),
    ("{p} listened to soft music", 6),
    ("{p} skipped breakfast", 7),
)

# a quantity, what it changes, and in which direction
QUANTITIES = (
    ("rain", "grass", 1),
    ("sunlight", "heat", 1),
    ("heat", "ice", -1),
    ("friction", "speed", -1),
    ("practice", "skill", 1),
    ("sleep", "energy", 1),
    ("smoke", "clean air", -1),
    ("noise", "silence", -1),
    ("fuel", "fire", 1),
    ("distance", "brightness", -1),
)

# a word, and for each of its senses the sentences that have it
SENSES = (
    (
        "bat",
        (
            ("A bat flew out of the cave.", "The bat slept upside down."),
            ("He swung the bat at the ball.", "The player broke his bat."),
        ),
    ),
    (
        "bank",
        (
            ("She put money in the bank.", "The bank lent him coins."),
            ("They fished from the bank.", "The bank of the river was muddy."),
        ),
    ),
    (
        "ring",
        (
            ("She wore a gold ring.", "The ring had a diamond."),
            ("We heard the ring of the bell.", "The ring of the phone woke him."),
        ),
    ),
    (
        "bark",
        (
            ("The bark of the oak was rough.", "Bark covers a trunk."),
            ("The bark of the puppy was loud.", "His bark scared the cat."),
        ),
    ),
    (
        "light",
        (
            ("The light of the candle was dim.", "Turn on the light."),
            ("The feather was light.", "Her suitcase was light."),
        ),
    ),
    (
        "spring",
        (
            ("In spring the roses bloom.", "After winter comes spring."),
            ("The spring of the clock was steel.", "He wound the spring tight."),
        ),
    ),
    (
        "wave",
        (
            ("A wave hit the beach.", "The surfer rode a wave."),
            ("She gave a wave with her hand.", "With a wave he said goodbye."),
        ),
    ),
    (
        "nail",
        (
            ("He hit the nail into the board.", "The nail in the wall was rusty."),
            ("She painted her nail red.", "He bit his nail."),
        ),
    ),
)
