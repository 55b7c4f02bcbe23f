"""Reviews of kettles: a dataset of one's own, with own templates, for DIRECT, CHANNEL and FLIPPED."""

import pathlib

from mixtures.own import Template, add_dataset, add_to_mixture

ANSWER = "{{answer_choices[label]}}"
add_dataset(
    "kettles",
    source=pathlib.Path(__file__).with_name("kettles"),  # train.jsonl and validation.jsonl
    label_column="label",
    templates=[
        Template("content", "Review: {{text}}\nIs the buyer content?", ANSWER, ("no", "yes")),
        Template("keep", "{{text}} Would you keep it or return it?", ANSWER, ("return", "keep")),
    ],
)
add_to_mixture("train", "kettles", rate=2000)
