"""Where the `paceline` command begins. From the first line on, Ctrl-C ends it without a traceback.

Nothing heavy is imported before that is arranged: an interrupt in the middle of an import would print one.
"""

from paceline.cli.interrupts import end_at_once

end_at_once()


def main() -> None:
    """The console script."""
    from paceline.cli.main import run

    run()


if __name__ == "__main__":
    main()
