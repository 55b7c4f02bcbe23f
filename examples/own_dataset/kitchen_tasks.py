"""Other ways to say it: promptsource's templates, templates in YAML, rows from a function, a mixture of one's own."""

import pathlib

from mixtures.own import Template, add_dataset, add_to_mixture

HERE = pathlib.Path(__file__).parent


def sums():
    """Rows as a function gives them."""
    for n in range(20):
        yield {"sum": f"{n} + {n // 3}", "even": ("no", "yes")[(n + n // 3) % 2 == 0]}


# The columns are those of glue/mrpc, so promptsource's templates of it fit.
add_dataset("kettle_pairs", {"train": HERE / "pairs.jsonl"}, "label", "glue/mrpc")
add_dataset("kettle_parts", {"train": HERE / "parts.jsonl"}, "part", HERE / "parts.yaml")
even = Template("even", "Is {{sum}} an even number?", "{{even}}", ("no", "yes"))
add_dataset("sums", {"train": sums}, "even", [even], label_values=("no", "yes"))
for name, rate in (("kettle_pairs", 3), ("kettle_parts", 2), ("sums", 5)):
    add_to_mixture("kitchen", name, rate)
