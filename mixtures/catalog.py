"""The catalog: 20 training datasets, one alternative, and the 12 configurations of the 14 NLP evaluation tasks.

Columns and numbers of examples are those of the hub's dataset cards (dataset_infos.json of the `datasets` release
2.4.0, the last that shipped them), under the hub's names of today. Every `hub_revision` is the branch on which the
hub keeps its own conversion to Parquet; `flipped data prepare` writes the commit that it found there into the
manifest, and `--revision COMMIT` pins one.

Which templates are used follows from promptsource 0.2.3: a template is usable when it has answer choices and its
rendered target is always one of them. The exceptions are listed here with their reasons.
"""

from __future__ import annotations

import re
from typing import Any

from flipped_tasks.bigbench import register_task_dataset
from flipped_tasks.datasets import DatasetSpec, register_dataset

_INDEX = "its choices are A to D, but the fifth option E is the answer of one row in five"
_KIND = "its target has three values, but only two of them are among its choices"
_REVIEW = "its target is a choice followed by ' review.', which is none of its choices"
_NO_TEXT = "it has no instruction text, so FLIPPED's target would be empty"
_STARS = "its five choices, made of stars, encode to the same token ids"
_QASC = (
    "asks about the second option but takes its label from the first, so it teaches wrong answers; kept, since "
    "the published recipe has it"
)


def columns(text: str) -> dict[str, Any]:
    """Reads the short form of a schema: `name` (a string), `name:int`, `name*` (a list), `name{…}` (nested)."""

    def parse(tokens: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while tokens and (token := tokens.pop(0)) != "}":
            if token.endswith("{"):
                found[token[:-1]] = parse(tokens)
                continue
            name, _, kind = token.partition(":")
            kind = kind or "string"
            found[name.rstrip("*")] = [kind] if name.endswith("*") else kind
        return found

    return parse(re.findall(r"[^\s{}]+\{|[^\s{}]+|\}", text))


_TRAINING = (
    DatasetSpec(
        name="commonsense_qa",
        hub_id="tau/commonsense_qa",
        columns=columns("id question question_concept choices{label* text*} answerKey"),
        splits={"train": 9741, "validation": 1221, "test": 1140},
        label_column="answerKey",
        label_in="choices.label",
        unlabelled=("",),
        unusable={"question_to_answer_index": _INDEX},
    ),
    DatasetSpec(
        name="cos_e/v1.11",
        hub_id="Salesforce/cos_e",
        hub_config="v1.11",
        columns=columns(
            "id question choices* answer abstractive_explanation extractive_explanation"
        ),
        splits={"train": 9741, "validation": 1221},
        label_column="answer",
        label_in="choices",
        unlabelled=("",),
    ),
    DatasetSpec(
        name="dream",
        hub_id="dataset-org/dream",
        columns=columns("id:int dialogue_id dialogue* question choice* answer"),
        splits={"train": 6116, "validation": 2040, "test": 2041},
        label_column="answer",
        label_in="choice",
        unlabelled=("",),
    ),
    DatasetSpec(
        name="quail",
        hub_id="textmachinelab/quail",
        columns=columns(
            "id context_id question_id domain metadata{author title url} context question "
            "question_type answers* correct_answer_id:int"
        ),
        splits={"train": 10246, "validation": 2164, "challenge": 556},
        label_column="correct_answer_id",
        label_values=(0, 1, 2, 3),
        unlabelled=(-1,),
        excluded_flipped={"no_prompt_id": _NO_TEXT},
    ),
    DatasetSpec(
        name="quartz",
        hub_id="allenai/quartz",
        columns=columns(
            "id question choices{text* label*} answerKey para para_id para_anno{effect_prop "
            "cause_dir_str effect_dir_str cause_dir_sign effect_dir_sign cause_prop} "
            "question_anno{more_effect_dir less_effect_dir less_cause_prop more_effect_prop "
            "less_effect_prop less_cause_dir}"
        ),
        splits={"test": 784, "train": 2696, "validation": 384},
        label_column="answerKey",
        label_in="choices.label",
        unlabelled=("",),
    ),
    DatasetSpec(
        name="social_i_qa",
        hub_id="allenai/social_i_qa",
        columns=columns("context question answerA answerB answerC label"),
        splits={"train": 33410, "validation": 1954},
        label_column="label",
        label_values=("1", "2", "3"),
        unlabelled=("",),
    ),
    DatasetSpec(
        name="wiqa",
        hub_id="allenai/wiqa",
        columns=columns(
            "question_stem question_para_step* answer_label answer_label_as_choice "
            "choices{text* label*} metadata_question_id metadata_graph_id metadata_para_id "
            "metadata_question_type metadata_path_len:int"
        ),
        splits={"train": 29808, "test": 3003, "validation": 6894},
        label_column="answer_label",
        label_values=("more", "less", "no_effect"),
        unlabelled=("",),
        unusable={"which_of_the_following_is_the_supposed_perturbation": _KIND},
    ),
    DatasetSpec(
        name="cosmos_qa",
        hub_id="allenai/cosmos_qa",
        columns=columns("id context question answer0 answer1 answer2 answer3 label:int"),
        splits={"test": 6963, "train": 25262, "validation": 2985},
        label_column="label",
        label_values=(0, 1, 2, 3),
        unlabelled=(-1,),
        excluded_flipped={"only_question_answer": _NO_TEXT},
    ),
    DatasetSpec(
        name="qasc",
        hub_id="allenai/qasc",
        columns=columns(
            "id question choices{text* label*} answerKey fact1 fact2 combinedfact "
            "formatted_question"
        ),
        splits={"test": 920, "train": 8134, "validation": 926},
        label_column="answerKey",
        label_in="choices.label",
        unlabelled=("",),
        notes={"is_correct_2": _QASC},
    ),
    DatasetSpec(
        name="quarel",
        hub_id="community-datasets/quarel",
        columns=columns(
            "id answer_index:int logical_forms* logical_form_pretty world_literals{world1* "
            "world2*} question"
        ),
        splits={"train": 1941, "test": 552, "validation": 278},
        label_column="answer_index",
        label_values=(0, 1),
        unlabelled=(-1,),
    ),
    DatasetSpec(
        name="sciq",
        hub_id="allenai/sciq",
        columns=columns("question distractor3 distractor1 distractor2 correct_answer support"),
        splits={"test": 1000, "train": 11679, "validation": 1000},
        label_column="correct_answer",
        unlabelled=("",),
    ),
    DatasetSpec(
        name="amazon_polarity",
        hub_id="fancyzhx/amazon_polarity",
        columns=columns("label:int title content"),
        splits={"train": 3600000, "test": 400000},
        label_column="label",
        label_values=(0, 1),
        label_names=("negative", "positive"),
        unlabelled=(-1,),
    ),
    DatasetSpec(
        name="app_reviews",
        hub_id="sealuzh/app_reviews",
        columns=columns("package_name review date star:int"),
        splits={"train": 288065},
        label_column="star",
        label_values=(1, 2, 3, 4, 5),
        unlabelled=(-1,),
        excluded_templates={"convert_to_star_rating": _STARS},
    ),
    DatasetSpec(
        name="imdb",
        hub_id="stanfordnlp/imdb",
        columns=columns("text label:int"),
        splits={"train": 25000, "test": 25000, "unsupervised": 50000},
        label_column="label",
        label_values=(0, 1),
        label_names=("neg", "pos"),
        unlabelled=(-1,),
        unusable={"Negation template for positive and negative": _REVIEW},
    ),
    DatasetSpec(
        name="rotten_tomatoes",
        hub_id="cornell-movie-review-data/rotten_tomatoes",
        columns=columns("text label:int"),
        splits={"train": 8530, "validation": 1066, "test": 1066},
        label_column="label",
        label_values=(0, 1),
        label_names=("neg", "pos"),
        unlabelled=(-1,),
    ),
    DatasetSpec(
        name="yelp_review_full",
        hub_id="Yelp/yelp_review_full",
        columns=columns("label:int text"),
        splits={"train": 650000, "test": 50000},
        label_column="label",
        label_values=(0, 1, 2, 3, 4),
        label_names=("1 star", "2 star", "3 stars", "4 stars", "5 stars"),
        unlabelled=(-1,),
    ),
    DatasetSpec(
        name="ag_news",
        hub_id="fancyzhx/ag_news",
        columns=columns("text label:int"),
        splits={"train": 120000, "test": 7600},
        label_column="label",
        label_values=(0, 1, 2, 3),
        label_names=("World", "Sports", "Business", "Sci/Tech"),
        unlabelled=(-1,),
    ),
    DatasetSpec(
        name="dbpedia_14",
        hub_id="fancyzhx/dbpedia_14",
        columns=columns("label:int title content"),
        splits={"train": 560000, "test": 70000},
        label_column="label",
        label_values=tuple(range(14)),
        label_names=(
            "Company",
            "EducationalInstitution",
            "Artist",
            "Athlete",
            "OfficeHolder",
            "MeanOfTransportation",
            "Building",
            "NaturalPlace",
            "Village",
            "Animal",
            "Plant",
            "Album",
            "Film",
            "WrittenWork",
        ),  # fmt: skip
        unlabelled=(-1,),
    ),
    DatasetSpec(
        name="glue/mrpc",
        hub_id="nyu-mll/glue",
        hub_config="mrpc",
        columns=columns("sentence1 sentence2 label:int idx:int"),
        splits={"test": 1725, "train": 3668, "validation": 408},
        label_column="label",
        label_values=(0, 1),
        label_names=("not_equivalent", "equivalent"),
        unlabelled=(-1,),
    ),
    DatasetSpec(
        name="glue/qqp",
        hub_id="nyu-mll/glue",
        hub_config="qqp",
        columns=columns("question1 question2 label:int idx:int"),
        splits={"train": 363846, "validation": 40430, "test": 390965},
        label_column="label",
        label_values=(0, 1),
        label_names=("not_duplicate", "duplicate"),
        unlabelled=(-1,),
    ),
    DatasetSpec(
        name="paws/labeled_final",
        hub_id="google-research-datasets/paws",
        hub_config="labeled_final",
        columns=columns("id:int sentence1 sentence2 label:int"),
        splits={"train": 49401, "test": 8000, "validation": 8000},
        label_column="label",
        label_values=(0, 1),
        label_names=("0", "1"),
        unlabelled=(-1,),
    ),
)

_EVALUATION = (
    DatasetSpec(
        name="anli",
        hub_id="facebook/anli",
        columns=columns("uid premise hypothesis label:int reason"),
        splits={
            "train_r1": 16946,
            "dev_r1": 1000,
            "test_r1": 1000,
            "train_r2": 45460,
            "dev_r2": 1000,
            "test_r2": 1000,
            "train_r3": 100459,
            "dev_r3": 1200,
            "test_r3": 1200,
        },
        label_column="label",
        label_values=(0, 1, 2),
        label_names=("entailment", "neutral", "contradiction"),
        unlabelled=(-1,),
    ),
    DatasetSpec(
        name="super_glue/cb",
        hub_id="aps/super_glue",
        hub_config="cb",
        columns=columns("premise hypothesis idx:int label:int"),
        splits={"test": 250, "train": 250, "validation": 56},
        label_column="label",
        label_values=(0, 1, 2),
        label_names=("entailment", "contradiction", "neutral"),
        unlabelled=(-1,),
    ),
    DatasetSpec(
        name="super_glue/rte",
        hub_id="aps/super_glue",
        hub_config="rte",
        columns=columns("premise hypothesis idx:int label:int"),
        splits={"test": 3000, "train": 2490, "validation": 277},
        label_column="label",
        label_values=(0, 1),
        label_names=("entailment", "not_entailment"),
        unlabelled=(-1,),
    ),
    DatasetSpec(
        name="super_glue/wsc.fixed",
        hub_id="aps/super_glue",
        hub_config="wsc.fixed",
        columns=columns(
            "text span1_index:int span2_index:int span1_text span2_text idx:int label:int"
        ),
        splits={"test": 146, "train": 554, "validation": 104},
        label_column="label",
        label_values=(0, 1),
        label_names=("False", "True"),
        unlabelled=(-1,),
    ),
    DatasetSpec(
        name="winogrande/winogrande_xl",
        hub_id="allenai/winogrande",
        hub_config="winogrande_xl",
        columns=columns("sentence option1 option2 answer"),
        splits={"train": 40398, "test": 1767, "validation": 1267},
        label_column="answer",
        label_values=("1", "2"),
        unlabelled=("",),
    ),
    DatasetSpec(
        name="super_glue/wic",
        hub_id="aps/super_glue",
        hub_config="wic",
        columns=columns(
            "word sentence1 sentence2 start1:int start2:int end1:int end2:int idx:int label:int"
        ),
        splits={"test": 1400, "train": 5428, "validation": 638},
        label_column="label",
        label_values=(0, 1),
        label_names=("False", "True"),
        unlabelled=(-1,),
    ),
    DatasetSpec(
        name="super_glue/copa",
        hub_id="aps/super_glue",
        hub_config="copa",
        columns=columns("premise choice1 choice2 question idx:int label:int"),
        splits={"test": 500, "train": 400, "validation": 100},
        label_column="label",
        label_values=(0, 1),
        label_names=("choice1", "choice2"),
        unlabelled=(-1,),
    ),
    DatasetSpec(
        name="hellaswag",
        hub_id="Rowan/hellaswag",
        columns=columns(
            "ind:int activity_label ctx_a ctx_b ctx endings* source_id split split_type label"
        ),
        splits={"train": 39905, "test": 10003, "validation": 10042},
        label_column="label",
        label_values=("0", "1", "2", "3"),
        unlabelled=("",),
    ),
    DatasetSpec(
        name="story_cloze/2016",
        hub_id="LSDSem/story_cloze",
        hub_config="2016",
        columns=columns(
            "story_id input_sentence_1 input_sentence_2 input_sentence_3 input_sentence_4 "
            "sentence_quiz1 sentence_quiz2 answer_right_ending:int"
        ),
        splits={"validation": 1871, "test": 1871},
        label_column="answer_right_ending",
        label_values=(1, 2),
        unlabelled=(-1,),
    ),
    DatasetSpec(
        name="piqa",
        hub_id="ybisk/piqa",
        columns=columns("goal sol1 sol2 label:int"),
        splits={"train": 16113, "test": 3084, "validation": 1838},
        label_column="label",
        label_values=(0, 1),
        label_names=("0", "1"),
        unlabelled=(-1,),
    ),
    DatasetSpec(
        name="ai2_arc/ARC-Challenge",
        hub_id="allenai/ai2_arc",
        hub_config="ARC-Challenge",
        columns=columns("id question choices{text* label*} answerKey"),
        splits={"test": 1172, "train": 1119, "validation": 299},
        label_column="answerKey",
        label_in="choices.label",
        unlabelled=("",),
    ),
    DatasetSpec(
        name="openbookqa/main",
        hub_id="allenai/openbookqa",
        hub_config="main",
        columns=columns("id question_stem choices{text* label*} answerKey"),
        splits={"train": 4957, "validation": 500, "test": 500},
        label_column="answerKey",
        label_in="choices.label",
        unlabelled=("",),
    ),
)

# Published instead of commonsense_qa in some mixtures of T0: the same questions with explanations.
ALTERNATIVES = {"commonsense_qa": "cos_e/v1.11"}
TRAINING = tuple(spec.name for spec in _TRAINING if spec.name not in ALTERNATIVES.values())
EVALUATION = tuple(spec.name for spec in _EVALUATION)


# BIG-bench's 14 tasks, each with its number of examples; two are folders of sub-tasks.
BIGBENCH: dict[str, dict[str, int]] = {
    "code_line_description": {"": 60},
    "conceptual_combinations": {
        "contradictions": 16,
        "emergent_properties": 40,
        "fanciful_fictional_combinations": 12,
        "homonyms": 9,
        "invented_words": 14,
        "surprising_uncommon_combinations": 12,
    },
    "hindu_knowledge": {"": 175},
    "known_unknowns": {"": 46},
    "language_identification": {"": 10000},
    "logic_grid_puzzle": {"": 1000},
    "logical_deduction": {"three_objects": 300, "five_objects": 500, "seven_objects": 700},
    "misconceptions": {"": 219},
    "movie_dialog_same_or_different": {"": 50000},
    "novel_concepts": {"": 32},
    "strategyqa": {"": 2290},
    "formal_fallacies_syllogisms_negation": {"": 14200},
    "vitaminc_fact_verification": {"": 54668},
    "winowhy": {"": 2865},
}

for _spec in (*_TRAINING, *_EVALUATION):
    register_dataset(_spec)
for _task, _parts in BIGBENCH.items():
    for _part, _examples in _parts.items():
        register_task_dataset(f"{_task}/{_part}".rstrip("/"), _examples)
