"""The `flipped` command. A subcommand's module is imported only when that subcommand is used."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from flipped_cli import errors
from flipped_core import streams
from flipped_core.errors import UserError, unknown

# Name of the subcommand -> (module, attribute, one line of help).
COMMANDS: Mapping[str, tuple[str, str, str]] = {
    "ckpt": (
        "flipped_cli.ckpt",
        "ckpt",
        "Make, import, export, describe, verify and copy checkpoints.",
    ),
    "data": ("flipped_cli.data", "data", "Store datasets once for offline use; list, verify."),
    "demo": ("flipped_cli.demo", "demo", "Train and compare the methods on made-up data."),
    "eval": (
        "flipped_cli.eval_command",
        "evaluate",
        "Evaluate checkpoints on suites; goes on after a stop.",
    ),
    "generate": (
        "flipped_cli.generate",
        "generate",
        "Let a model write: a label, a prompt, or the instruction that it guesses.",
    ),
    "mixtures": (
        "flipped_cli.mixtures",
        "mixtures",
        "Show what a mixture holds, and at which rates.",
    ),
    "plan": (
        "flipped_cli.plan",
        "plan",
        "Time, memory and traffic of training and scoring on TPUs that are not at hand.",
    ),
    "pretrain": (
        "flipped_cli.pretrain",
        "pretrain",
        "Rebuild the pre-trained miniature that the demo starts from.",
    ),
    "report": ("flipped_cli.report_command", "report", "Results of evaluations as one page."),
    "score": ("flipped_cli.score", "score", "Score choices with a checkpoint, ad hoc or a file."),
    "study": ("flipped_cli.demo", "study", "The demo over five seeds, with mean and spread."),
    "tasks": (
        "flipped_cli.tasks",
        "tasks",
        "List, render, check the datasets and templates; start one's own.",
    ),
}


# Commands whose work is more than what they print: it goes on, and decides the exit code, when nobody reads that.
LASTING = (
    "ckpt",
    "data",
    "demo",
    "eval",
    "report",
    "study",
    "tasks export",
    "tasks lint",
    "tasks new",
)


def _is_lasting(words: Sequence[str]) -> bool:
    return any(" ".join(words[: name.count(" ") + 1]) == name for name in LASTING)


def _with_defaults(command: click.Command) -> click.Command:
    """The command, with the default of each option in its help, once."""
    if isinstance(command, click.Group):
        for one in command.commands.values():
            _with_defaults(one)
    for option in command.params:
        if not isinstance(option, click.Option) or option.required or option.is_flag:
            continue
        text = option.help or ""
        if option.show_default or "[default: " in text:
            continue
        if option.default is None or not isinstance(option.default, int | float | str):
            option.help = f"{text} [default: none]".strip()
        else:
            option.show_default = True
    return command


class LazyGroup(click.Group):
    """A group that knows its commands by name and help only, until one of them is called.

    Its `main` tells every mistake of the user in one line, with exit code 2.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        return _with_defaults(getattr(importlib.import_module(module), attribute))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise unknown("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        run: Callable[[], Any] = functools.partial(
            super().main, args, prog_name, complete_var, False, **extra
        )
        if not standalone_mode:
            return run()
        if args is None:  # as a process of its own, not called by a test
            errors.begin(lasting=_is_lasting(sys.argv[1:]))
        try:
            code: Any = run()
            errors.flush()
        except UserError as error:
            code = errors.report(error)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = errors.USER_ERROR_CODE
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            hint = f"; see {context.command_path} --help" if context else ""
            code = errors.report(f"{error.format_message().rstrip('.')}{hint}")
        except click.Abort:
            code = errors.INTERRUPTED_CODE
        except (BrokenPipeError, streams.ReaderGone):  # as in `flipped … | head`
            errors.drop_stdout()
            code = 0
        except Exception as error:  # noqa: BLE001 - TensorStore wraps the system's errors in any kind
            code = errors.report_failure(error)
        code = code if isinstance(code, int) else 0
        if args is None:
            errors.leave(code)
        sys.exit(code)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Flipped Learning on JAX: prompted tasks, the methods DIRECT, CHANNEL and FLIPPED, the demo.

    Training and evaluation read gin files: see `python train.py --help`, `python eval.py --help`.
    """


if __name__ == "__main__":
    main(prog_name="flipped")
