"""How a checkpoint was trained, as far as it decides how it is asked: method, lengths, eos and vocabulary.

They come from files of the checkpoint itself, and from no others:
- `run.json` of the run folder that contains it (RUN/run.json for RUN/checkpoints/N), where model and vocabulary match;
- `recipe.json`, which `flipped ckpt` writes beside weights that it exports or imports;
- `spiece.model` beside the weights or in the run folder.
What none of them says must be given by the user. All commands read checkpoints through `find`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from flipped_core import hub
from flipped_core.errors import UserError, unknown
from flipped_core.paths import is_bucket, to_path
from flipped_core.sealed import read_optionally_sealed, seal
from flipped_core.settings import check_fields, from_mapping, setting, shown
from flipped_tasks.methods import METHODS
from flipped_tasks.tokens import Vocabulary
from t5_engine.config import STRUCTURE_FIELDS, T5Config
from t5_engine.run_settings import FEATURES, TrainRun

RUN_FILE = "run.json"
RECIPE_FILE = "recipe.json"
VOCABULARY = hub.VOCABULARY  # the name that Hugging Face's T5 folders use
CHECKPOINTS = "checkpoints"  # t5_engine.checkpoints writes them there
FORMAT = 1  # of recipe.json
GIVEN = "given"
RUN_FIELDS = ("recipe", "vocabulary", "versions", "git_commit")  # of run.json


@dataclasses.dataclass(frozen=True)
class RecipeFile:
    """The content of `recipe.json`; what is None is not known."""

    format: int = setting("Version of this file.", minimum=1, maximum=FORMAT)
    method: str | None = setting("How choices are scored.", None, choices=tuple(METHODS))
    lengths: Mapping[str, int] | None = setting(
        "Longest inputs and targets.", None, unit="tokens", minimum=2, keys=FEATURES
    )
    input_eos: bool | None = setting("Whether inputs end with </s>.", None)
    vocabulary_sha256: str | None = setting("Of the SentencePiece model.", None)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is known of a checkpoint; None where it is not recorded.

    Attributes:
      checkpoint: as the user named it.
      method: "direct", "channel" or "flipped".
      lengths: longest "inputs" and "targets", in tokens.
      input_eos: whether encoder inputs end with the end-of-sequence id.
      vocab_path: the SentencePiece model.
      sources: field -> the file it was read from, or "given".
      run: the settings in `run.json`, by field of `TrainRun`; {} without one that belongs to the checkpoint.
      run_content: the whole content of that file.
      notes: files that were found and not used, and why.
    """

    checkpoint: str
    method: str | None = None
    lengths: Mapping[str, int] | None = None
    input_eos: bool | None = None
    vocab_path: str | None = None
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    run: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    run_content: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def exact_vocabulary(self) -> bool:
        """Whether no file says which vocabulary the model was trained with, so that only its size tells."""
        return self.sources.get("vocab_path") == GIVEN and not self.run

    def given(self, **values: Any) -> Recipe:
        """A copy with what the user gave; None leaves a field as it is.

        Raises:
          UserError: the vocabulary is another than the recorded one.
        """
        found = {name: value for name, value in values.items() if value is not None}
        vocab = found.get("vocab_path")
        if vocab is not None:
            vocab = found["vocab_path"] = hub.vocabulary(vocab)
        if vocab is not None and self.vocab_path is not None:
            if not to_path(vocab).is_file():
                Vocabulary.from_file(vocab)  # says what is missing
            if sha256(vocab) != sha256(self.vocab_path):
                raise UserError(
                    f"vocabulary: {self.checkpoint} was trained with {self.vocab_path}, and {vocab} is another "
                    "vocabulary"
                )
        return dataclasses.replace(
            self, **found, sources={**self.sources, **dict.fromkeys(found, GIVEN)}
        )

    def require(self, how: Mapping[str, str]) -> None:
        """Refuses fields that are neither recorded nor given.

        Args:
          how: field -> how the user gives it, such as "--method NAME".

        Raises:
          UserError: names all that are missing.
        """
        missing = [name for name in how if getattr(self, name) is None]
        if missing:
            said = f"; {'; '.join(self.notes)}" if self.notes else ""
            raise UserError(
                f"{self.checkpoint} does not record its {', '.join(_WORDS[name] for name in missing)}: give "
                f"{' '.join(how[name] for name in missing)}{said}"
            )

    def lines(self) -> list[str]:
        """What is used and where it comes from, and what was not used, for people."""
        by_source: dict[str, list[str]] = {}
        for name, text in self._texts():
            if name in self.sources:
                by_source.setdefault(self.sources[name], []).append(text)
        used = [f"{', '.join(texts)} ({source})" for source, texts in by_source.items()]
        return [f"{self.checkpoint}: {'; '.join(used) or 'nothing is recorded'}", *self.notes]

    def _vocabulary(self) -> str:
        source = self.sources.get("vocab_path")
        return "vocabulary" if source == self.vocab_path else f"vocabulary {self.vocab_path}"

    def _texts(self) -> list[tuple[str, str]]:
        lengths = self.lengths or {}
        eos = "with" if self.input_eos else "without"
        return [
            ("method", f"method {self.method}"),
            (
                "lengths",
                f"at most {' and '.join(f'{lengths.get(f)} {f}' for f in FEATURES)} tokens",
            ),
            ("input_eos", f"inputs {eos} </s>"),
            ("vocab_path", self._vocabulary()),
        ]


_WORDS = {
    "method": "method",
    "lengths": "lengths",
    "input_eos": "end of inputs (</s> or not)",
    "vocab_path": "vocabulary",
}


def of(checkpoint: str) -> tuple[Recipe, T5Config]:
    """What the files of a checkpoint say about how to ask it, and its model; no weights are read or downloaded.

    Args:
      checkpoint: what `t5_engine.exchange` reads; of `hf://` with its commit.

    Raises:
      UserError: there is no checkpoint, or as in `find`.
    """
    from t5_engine import exchange, huggingface_folder

    kind = exchange.detect(checkpoint)
    if kind == "hf":
        config = huggingface_folder.read_config(checkpoint)
        return find(checkpoint, checkpoint, config), config
    weights = exchange.open_as(kind, checkpoint, verify=False)
    return find(checkpoint, weights.path, weights.config), weights.config


def find(checkpoint: str, place: str, config: T5Config) -> Recipe:
    """What the files of a checkpoint say about how to ask it.

    Args:
      checkpoint: as the user named it, for messages.
      place: the folder of the weights themselves, such as RUN/checkpoints/N (`Weights.path`).
      config: the model, as the checkpoint describes it.

    Raises:
      UserError: one of its files cannot be read, or a field of it is unknown or not of its type.
    """
    folder = to_path(hub.local(place))
    if not is_bucket(folder):
        folder = to_path(
            os.path.realpath(folder)
        )  # a link in a run's folder is no checkpoint of that run
    if not folder.is_dir():
        folder = folder.parent
    run_folder = run_folder_of(folder)
    homes = [folder, *([run_folder] if run_folder is not None else [])]
    if folder.name.startswith("checkpoint_"):  # of T5X
        homes.append(folder.parent)
    notes: list[str] = []
    beside = next((home / VOCABULARY for home in homes if (home / VOCABULARY).is_file()), None)
    vocab = None if beside is None else str(beside)
    sources = {} if vocab is None else {"vocab_path": vocab}
    for home in homes:
        if (home / RECIPE_FILE).is_file():
            return _from_recipe_file(checkpoint, home / RECIPE_FILE, vocab, sources)
    if run_folder is None or not (run_folder / RUN_FILE).is_file():
        return Recipe(checkpoint, vocab_path=vocab, sources=sources)
    file = run_folder / RUN_FILE
    content = read_run_file(file)
    run = settings_of(file, content, partial=True)
    _check_versions(file, content)
    recorded = _recorded_vocabulary(file, content, run)
    why = _differs(run, content, config, vocab, recorded)
    if why is not None:
        notes.append(f"{file} is not used: {why}")
        return Recipe(checkpoint, vocab_path=vocab, sources=sources, notes=tuple(notes))
    if vocab is None and recorded is not None:
        vocab, sources["vocab_path"] = recorded, str(file)
    if "input_eos" not in run:  # files of the first versions
        run = {**run, "input_eos": True}
    method = method_of(run.get("mixture", ""))
    found = {"method": method, "lengths": run.get("lengths"), "input_eos": run["input_eos"]}
    sources |= {name: str(file) for name, value in found.items() if value is not None}
    return Recipe(
        checkpoint, **found, vocab_path=vocab, sources=sources, run=run, run_content=content
    )


def run_folder_of(folder: epath.Path) -> epath.Path | None:
    """The run that contains a checkpoint: RUN of RUN/checkpoints/N; None of any other folder."""
    contained = folder.parent.name == CHECKPOINTS and folder.name.isdigit()
    contained = contained and not (folder / hub.CONFIG).exists()  # a Hugging Face folder
    return folder.parent.parent if contained else None


def method_of(mixture: str) -> str | None:
    """The method whose name a mixture's or task's name begins with, such as "flipped_train"; None of none."""
    return next((m for m in METHODS if mixture.startswith((f"{m}_", f"{m}."))), None)


def read_run_file(file: epath.Path) -> dict[str, Any]:
    """The content of a `run.json`, verified where it has a checksum; files of older versions have none.

    Raises:
      UserError: it cannot be read, or is not what training wrote; names the file.
    """
    content = read_optionally_sealed(file)
    for name in content:
        if name not in RUN_FIELDS:
            raise UserError(f"{file}: {unknown('field', name, RUN_FIELDS)}")
    if not isinstance(content.get("recipe"), Mapping):
        raise UserError(
            f"{file}: not a run file: expected an object 'recipe', got {shown(content.get('recipe'))}"
        )
    return content


def settings_of(file: epath.Path, content: Mapping[str, Any], *, partial: bool) -> dict[str, Any]:
    """The settings in the content of a `run.json`, by field of `TrainRun`.

    Args:
      file: what training wrote.
      content: as `read_run_file` gives it.
      partial: whether required settings may be missing.

    Raises:
      UserError: a setting is unknown or not of its type.
    """
    given = {"model_dir": str(file.parent), **content["recipe"]}  # required, and not in the file
    return from_mapping(TrainRun, given, str(file), partial=partial)


def read_run(file: epath.Path, *, partial: bool) -> dict[str, Any]:
    """The settings in a `run.json`; see `read_run_file` and `settings_of`."""
    return settings_of(file, read_run_file(file), partial=partial)


def recorded_hash(content: Mapping[str, Any]) -> str | None:
    """The SHA-256 of the vocabulary that a `run.json` records; None in files of older versions."""
    vocabulary = content.get("vocabulary")
    value = vocabulary.get("sha256") if isinstance(vocabulary, Mapping) else None
    return value if isinstance(value, str) else None


def recipe_text(recipe: Recipe) -> str:
    """The content of `recipe.json` for a copy of the checkpoint."""
    content = {
        "format": FORMAT,
        "method": recipe.method,
        "lengths": None if recipe.lengths is None else dict(recipe.lengths),
        "input_eos": recipe.input_eos,
        "vocabulary_sha256": None if recipe.vocab_path is None else sha256(recipe.vocab_path),
    }
    return json.dumps(seal(content), indent=2) + "\n"


def sha256(path: epath.PathLike) -> str:
    """The SHA-256 of a file.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return hashlib.sha256(to_path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _from_recipe_file(
    checkpoint: str, file: epath.Path, vocab: str | None, sources: dict[str, str]
) -> Recipe:
    content = read_optionally_sealed(file)
    found = RecipeFile(**from_mapping(RecipeFile, content, str(file)))
    if vocab is not None and found.vocabulary_sha256 not in (None, sha256(vocab)):
        raise UserError(
            f"{vocab} is not the vocabulary that {file} records; restore it from the export"
        )
    known = {name: getattr(found, name) for name in ("method", "lengths", "input_eos")}
    sources = sources | {name: str(file) for name, value in known.items() if value is not None}
    return Recipe(checkpoint, **known, vocab_path=vocab, sources=sources)


def _check_versions(file: epath.Path, content: Mapping[str, Any]) -> None:
    """Refuses a `run.json` whose versions or commit are not of their types."""
    versions, commit = content.get("versions", {}), content.get("git_commit")
    if not isinstance(versions, Mapping) or not all(isinstance(v, str) for v in versions.values()):
        raise UserError(f"{file}: versions: expected {{package: version}}, got {shown(versions)}")
    if not isinstance(commit, (str, type(None))):
        raise UserError(f"{file}: git_commit: expected a name or None, got {shown(commit)}")


def _recorded_vocabulary(
    file: epath.Path, content: Mapping[str, Any], run: Mapping[str, Any]
) -> str | None:
    """The vocabulary that a `run.json` of an older version names by its path, where it is there."""
    path = run.get("vocab_path")
    if path is None or recorded_hash(
        content
    ):  # files with a hash have a copy beside them, found already
        return None
    if hub.is_reference(path):
        return hub.vocabulary(path)
    return str(path) if to_path(path).is_file() else None


def _differs(
    run: Mapping[str, Any],
    content: Mapping[str, Any],
    config: T5Config,
    vocab: str | None,
    recorded: str | None,
) -> str | None:
    """Why a `run.json` does not describe a checkpoint; None where it does."""
    if (model := run.get("model")) is not None:
        for name in STRUCTURE_FIELDS:
            if getattr(model, name) != getattr(config, name):
                return f"its model has {name} {getattr(model, name)}, the checkpoint {getattr(config, name)}"
    expected = recorded_hash(content) or (None if recorded is None else sha256(recorded))
    if vocab is not None and expected not in (None, sha256(vocab)):
        return f"its vocabulary is another than {vocab}"
    if vocab is None and recorded is not None:
        needed = Vocabulary.from_file(recorded).num_ids
        if needed > config.vocab_size:
            return f"its vocabulary has {needed} ids, the checkpoint {config.vocab_size} rows"
    return None
