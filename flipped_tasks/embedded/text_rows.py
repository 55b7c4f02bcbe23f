"""Rows of the sentiment, topic and paraphrase datasets, told in the made-up world."""

from __future__ import annotations

import random
from typing import Any

from flipped_tasks.embedded import scenes, words

Row = dict[str, Any]


def review(rng: random.Random, thing: str, stars: int) -> str:
    """One to three opinions of this strength about parts of a thing."""
    parts = rng.sample(words.REVIEWED[thing], rng.randint(1, 3))
    told = [
        f"The {part} {rng.choice(('was', 'is', 'seemed'))} {rng.choice(words.OPINIONS[stars])}."
        for part in parts
    ]
    return " ".join(told)


def polarity(rng: random.Random) -> tuple[int, int]:
    """A label (0 negative, 1 positive) and stars that fit it."""
    label = rng.randrange(2)
    return label, rng.choice((4, 5) if label else (1, 2))


def amazon_polarity(rng: random.Random, number: int) -> Row:
    del number
    label, stars = polarity(rng)
    return {
        "label": label,
        "title": f"{rng.choice(words.OPINIONS[stars])} thing",
        "content": review(rng, "product", stars),
    }


def imdb(rng: random.Random, number: int) -> Row:
    del number
    label, stars = polarity(rng)
    return {"text": review(rng, "film", stars), "label": label}


def rotten_tomatoes(rng: random.Random, number: int) -> Row:
    del number
    label, stars = polarity(rng)
    return {"text": review(rng, "film", stars).lower().replace(".", " ."), "label": label}


def yelp_review_full(rng: random.Random, number: int) -> Row:
    del number
    label = rng.randrange(5)
    return {"label": label, "text": review(rng, "place", label + 1)}


def app_reviews(rng: random.Random, number: int) -> Row:
    del number
    stars = rng.randint(1, 5)
    return {
        "package_name": f"org.example.{rng.choice(words.TITLES).lower()}",
        "review": review(rng, "app", stars),
        "date": "January 1 2020",
        "star": stars,
    }


def ag_news(rng: random.Random, number: int) -> Row:
    del number
    label = rng.randrange(4)
    first, second = rng.sample(words.TOPICS[label][1], 2)
    person = rng.choice(words.PEOPLE)
    return {
        "text": f"{person} {rng.choice(words.NEWS_VERBS)} the {first} and the {second}.",
        "label": label,
    }


def dbpedia_14(rng: random.Random, number: int) -> Row:
    del number
    label = rng.randrange(14)
    title = rng.choice(words.TITLES)
    return {
        "label": label,
        "title": title,
        "content": f" {rng.choice(words.ARTICLES[label]).format(t=title)}.",
    }


def pair(rng: random.Random, facts: int) -> tuple[scenes.Telling, scenes.Telling, int]:
    """A telling and a retelling in other words; in half of the pairs one concept is another one (label 0).

    No word stands in both tellings, so equal and different words give nothing away.
    """
    label = rng.randrange(2)
    person = rng.choice(words.PEOPLE)
    told = scenes.draw_facts(rng, facts)
    first = scenes.tell(rng, person, told)
    retold = list(told)
    if not label:
        at = rng.randrange(facts)
        retold[at] = scenes.other(rng, retold[at])
    return first, scenes.retell(rng, first, retold), label


def mrpc(rng: random.Random, number: int) -> Row:
    first, second, label = pair(rng, rng.choice((1, 1, 2)))
    return {
        "sentence1": first.sentence(rng),
        "sentence2": second.sentence(rng),
        "label": label,
        "idx": number,
    }


def paws(rng: random.Random, number: int) -> Row:
    first, second, label = pair(rng, rng.choice((1, 2)))
    return {
        "id": number + 1,
        "sentence1": first.sentence(rng),
        "sentence2": second.sentence(rng),
        "label": label,
    }


ASKED = {
    "mood": ("Why are people {w}?", "What makes people {w}?"),
    "place": ("How do I find the {w}?", "Which way is the {w}?"),
    "object": ("Where can I get a {w}?", "How much is a {w}?"),
    "job": ("How do I become a {w}?", "What does a {w} earn?"),
    "hobby": ("Why do people like {w}?", "Is {w} healthy?"),
}


def qqp(rng: random.Random, number: int) -> Row:
    label = rng.randrange(2)
    fact = scenes.draw_fact(rng)
    first = scenes.pick_word(rng, fact)
    second = scenes.pick_word(rng, fact if label else scenes.other(rng, fact), (first,))
    form = rng.choice(ASKED[fact.kind])
    asked = [scenes.with_article(form.format(w=word)) for word in (first, second)]
    return {"question1": asked[0], "question2": asked[1], "label": label, "idx": number}
