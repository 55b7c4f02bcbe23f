"""Text from outside as Markdown that shows it and nothing else: no markup, no HTML, no links."""

from __future__ import annotations

import re

# What begins or ends an inline element in CommonMark, and in GitHub's tables, strikethrough, mathematics and mentions.
# An underscore inside a word does not. A colon after http and the like, or a dot after www, makes a link.
_MARKUP = re.compile(
    r"[\\`*|\[\]<>&#~$@]|(?<![^\W_])_|_(?![^\W_])|(?<=http):|(?<=https):|(?<=ftp):|(?<=www)\.",
    re.IGNORECASE,
)


class Markdown(str):
    """Text that is Markdown already; `escape` leaves it as it is."""


def escape(text: object) -> Markdown:
    """`text` on one line with its markup escaped: for a part of a line, or a cell of a table."""
    if isinstance(text, Markdown):
        return text
    return Markdown(_MARKUP.sub(lambda found: "\\" + found[0], _on_one_line(text)))


def code(text: object) -> Markdown:
    """`text` on one line as a code span; not for tables, whose `|` end a span too."""
    flat = _on_one_line(text) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", flat)), default=0))
    pad = " " if flat[0] == "`" or flat[-1] == "`" else ""
    return Markdown(f"{fence}{pad}{flat}{pad}{fence}")


def _on_one_line(text: object) -> str:
    return " ".join(str(text).split())
