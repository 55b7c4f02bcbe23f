"""Options that take several words: `--method direct flipped` as well as `--method direct --method flipped`."""

from __future__ import annotations

import click


class SeveralWords(click.Command):
    """A command whose options with `multiple=True` take all words up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        several = {
            name
            for parameter in self.params
            if isinstance(parameter, click.Option) and parameter.multiple
            for name in parameter.opts
        }
        spread: list[str] = []
        option: str | None = None  # the one whose words follow
        given = 0
        for word in args:
            if word.startswith("-") and word != "-":
                option, given = (word, 0) if word in several else (None, 0)
            elif option is not None:
                given += 1
                if given > 1:
                    spread.append(option)
            spread.append(word)
        return super().parse_args(ctx, spread)
