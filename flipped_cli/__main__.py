"""`flipped`, and `python -m flipped_cli`: signals and closed streams are seen to before anything slow is imported."""

from __future__ import annotations

from flipped_cli import errors


def start() -> None:
    """Runs the command line of this process."""
    errors.protect()
    from flipped_cli.main import main

    main(prog_name="flipped")


if __name__ == "__main__":
    start()
