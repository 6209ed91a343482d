"""The flags of ``python main.py keys``, apart from what it does: they are made for every verb. Standard library."""

from argparse import ArgumentParser

LIMITS = ("requests_per_day", "requests_per_month", "tokens_per_day", "tokens_per_month", "concurrent")
NONE = "none"


def add_arguments(parser: ArgumentParser) -> list[ArgumentParser]:
    """Add the verb's actions and their flags; return the actions' parsers."""
    made = []
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    for action, does in (
        ("create", "make a key and show it, this once"),
        ("list", "show the keys, not their secrets"),
        ("change", "change what a key may do"),
        ("rotate", "give a key a new secret; the old one ends at once"),
        ("revoke", "end a key; its name and its usage stay"),
        ("remove", "forget a revoked key; its name is free again"),
    ):
        one = actions.add_parser(action, help=does, description=does[0].upper() + does[1:] + ".")
        one.add_argument("--json", action="store_true", help="print JSON")
        if action != "list":
            one.add_argument("name", help="its name: letters, digits and . _ - @")
        if action in ("create", "change"):
            _allowances(one)
        made.append(one)
    return made


def _allowances(parser: ArgumentParser) -> None:
    parser.add_argument("--role", choices=["user", "admin"], help="admin may use /admin too (default user)")
    parser.add_argument("--models", metavar="A,B", help="the models it may use (default all)")
    for name in LIMITS:
        what = "requests at once" if name == "concurrent" else name.replace("_", " ")
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N", help=f"at most N {what}")
    parser.add_argument("--rate", help="requests it may make, such as 60/minute or 5/second;1000/day")
    parser.add_argument("--expires", metavar="TIME", help="when it ends: in, say, 90d, or on a day such as 2030-12-31")
    parser.epilog = f"Any of these may be '{NONE}'."
