"""The help of every subcommand: an example that its own parser takes, and the default of each option."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from flipped_cli.main import main

# One name for one thing: the other names that people type for it are no options of any command.
NAMES = {
    "--method": ("--methods", "--form"),
    "--inputs_length": ("--inputs", "--input_length", "--max_inputs"),
    "--targets_length": ("--targets", "--target_length", "--max_targets"),
    "--vocab": ("--vocab_path", "--vocabulary"),
    "--checkpoint": ("--checkpoints", "--ckpt", "--checkpoint_path"),
    "--module": ("--modules", "--task_modules"),
    "--data_dir": ("--data", "--data_folder"),
    "--max_examples": ("--examples", "--limit"),
    "--batch_size": ("--batch", "--batchsize"),
    "--seed": ("--random_seed",),
    "--suite": ("--suites",),
}


def leaves(command: click.Command = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        yield path
        return
    for name in command.list_commands(click.Context(command)):
        found = command.get_command(click.Context(command), name)
        assert found is not None
        yield from leaves(found, (*path, name))


def command_of(path: tuple[str, ...]) -> click.Command:
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    return command


def help_of(path: tuple[str, ...]) -> str:
    result = CliRunner().invoke(main, [*path, "--help"], terminal_width=200)
    assert result.exit_code == 0, result.output
    return result.output


PATHS = sorted(leaves())


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_the_help_has_examples_that_the_command_takes(path: tuple[str, ...]) -> None:
    text = help_of(path).replace("\\\n", " ")
    start = f"flipped {' '.join(path)} "
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith(start)]
    assert examples, f"no example in the help of {start}"
    for example in examples:
        words = shlex.split(example)[1 + len(path) :]
        command_of(path).make_context(
            start, words
        )  # raises where an option or argument is unknown or missing


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_the_help_gives_the_default_of_each_option(path: tuple[str, ...]) -> None:
    command = command_of(path)
    context = click.Context(command)
    for option in command.params:
        if not isinstance(option, click.Option) or option.is_flag:
            continue
        record = option.get_help_record(context)
        assert record is not None
        _, told = record
        if option.required:
            assert "[required]" in told, option.opts
        else:
            assert re.search(r"\[.*default: ", told), (option.opts, told)
        assert not re.search(r"\bNone\b", told), (option.opts, told)
        assert told.partition("[")[0].strip(), f"{option.opts}: no help"


def test_options_have_one_name_in_all_commands() -> None:
    for path in PATHS:
        for option in command_of(path).params:
            for name in (
                option.opts + option.secondary_opts if isinstance(option, click.Option) else ()
            ):
                assert "-" not in name.lstrip("-"), (path, name)
                for right, wrong in NAMES.items():
                    assert name not in wrong, f"{' '.join(path)}: {name}, elsewhere {right}"
