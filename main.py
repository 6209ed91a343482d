"""``python main.py`` serves; other verbs follow it. Imports no torch.

Parses nothing itself: the verbs and their options are in ``commands/``. Errors become an exit status here.
"""

import sys


def main(argv: list[str] | None = None) -> int:
    """Run a verb; return the exit status.

    A mistake of the user gives status 2: a wrong option is told with the verb's usage, all else in one line on standard
    error.
    """
    try:
        return _run_verb(argv)
    except ModuleNotFoundError as error:
        print(f"switchyard: the package {error.name} is missing; run: pip install -r requirements.txt", file=sys.stderr)
        return 2


def _run_verb(argv: list[str] | None) -> int:
    import click  # not at the top: a missing package is one line on standard error

    from commands.command_line import command_line

    try:
        return command_line.main(argv, "main.py", standalone_mode=False) or 0
    except click.Abort:  # Ctrl-C
        return 130
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        print(f"switchyard: {error.format_message()}", file=sys.stderr)
        return error.exit_code
    except ValueError as error:
        print(f"switchyard: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
