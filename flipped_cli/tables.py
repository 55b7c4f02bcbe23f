"""Tables on a terminal, and the same tables whole where the output is a file or a pipe."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def show(table: Table, width: int = 200) -> None:
    """Prints a table. Rich cuts to 80 columns where the output is no terminal; there it gets `width`."""
    console = Console()
    (console if console.is_terminal else Console(width=width)).print(table)
