"""The command line: the group of verbs. Runs in a process of its own, or in the one that starts the gateway's.

Knows the verbs' names alone: a verb's module is imported when the verb is asked for, so that ``--help`` is quick.
"""

from importlib import import_module

import click

from commands.verb import SERVING_OPTIONS, VerbGroup

VERBS = {
    "serve": "serve the models (the default)",
    "download": "fetch weights from the hub",
    "models": "list the models, their weights and sizes",
    "chat": "talk to a model of a running server",
    "batch": "answer a file of prompts, one result per line",
    "moderate": "hold a video to a policy: a verdict, and a report",
    "cache": "list or prune the quantized weights kept between loads",
    "doctor": "check this machine, the packages and the settings, and say what to do",
    "keys": "make, list and revoke API keys",
    "worker": "take video moderation jobs from a queue of AWS",
}
_EPILOG = """\b
examples:
  python main.py --profile pocket          small models, no GPU and no download needed
  python main.py --port 8080 --skip-download
  python main.py download deepseek         fetch one model's weights
  python main.py models                    what can be served, and what is on disk
  python main.py doctor                    what is right on this machine, and what to do about the rest
  python main.py chat qwen_vl "What is it?" --file cat.jpg
  python main.py keys create alice         an API key, shown this once
  python main.py moderate video.mp4 --policy policies/default.yaml
  python main.py batch --model deepseek --input prompts.jsonl --output results.jsonl

Every setting is also an environment variable, SWITCHYARD_<NAME>, and a line of the --config file.
"""


class LazyGroup(VerbGroup):
    """Imports ``commands.<verb>`` for its ``<verb>_command`` when the verb is asked for; help imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = getattr(import_module(f"commands.{cmd_name}"), f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=LazyGroup,
    params=SERVING_OPTIONS,
    invoke_without_command=True,
    subcommand_metavar="[VERB] ...",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 120},
)
@click.pass_context
def command_line(context: click.Context, /, **serving: bool) -> int | None:
    """Serve many models from one GPU, each loaded when it is first asked for."""
    context.default_map = {"serve": serving}
    if context.invoked_subcommand is not None:
        return None
    from commands.serve import serve_command

    status: int | None = context.invoke(serve_command, **serving)
    return status
