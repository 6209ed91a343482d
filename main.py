"""The command line: ``python main.py`` serves; other verbs follow it. Imports no torch.

Each verb is a module in ``commands/``, imported when it is asked for.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from commands import keys_arguments, moderate_arguments

_DESCRIPTION = "Serve many models from one GPU, each loaded when it is first asked for."
_EPILOG = """examples:
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


def main(argv: list[str] | None = None) -> int:
    """Run a verb; return the exit status. Mistakes of the user end in one line on standard error and status 2."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        print(f"switchyard: the package {error.name} is missing; run: pip install -r requirements.txt", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    if arguments.verb == "doctor":  # before anything is imported or read that might be what ails
        from commands import doctor

        return doctor.run(arguments.config, _flags(arguments), as_json=arguments.json)
    from models_registry.catalog import CatalogError, load_catalog
    from utils.settings import SettingsError, load_settings

    try:
        if arguments.verb == "worker":  # its settings are its own
            from commands import worker

            return worker.run(check=arguments.check)
        settings = load_settings(arguments.config, **_flags(arguments))
        match arguments.verb or "serve":
            case "download":
                from commands import download

                return download.run(settings, load_catalog(settings), arguments.names, speech=arguments.speech)
            case "models":
                from commands import models

                if arguments.fit:
                    from commands import fit

                    return fit.run(settings, load_catalog(settings), as_json=arguments.json)
                return models.run(settings, load_catalog(settings), as_json=arguments.json)
            case "chat":
                from commands import chat

                return chat.run(settings, arguments.model, arguments.file, arguments.prompt, arguments.url)
            case "batch":
                from commands import batch

                return batch.run(
                    settings,
                    batch.Options(
                        arguments.input,
                        arguments.output,
                        arguments.model,
                        arguments.url,
                        arguments.concurrency,
                        arguments.retries,
                        arguments.fresh,
                        arguments.timeout,
                        arguments.retry_failed,
                        tuple(arguments.files),
                    ),
                )
            case "moderate":
                from commands import moderate

                return moderate.run(
                    settings,
                    moderate.Options(
                        arguments.video,
                        arguments.policy,
                        arguments.url,
                        arguments.model,
                        arguments.out,
                        arguments.fps,
                        arguments.max_frames,
                        arguments.longest_side,
                        arguments.concurrency,
                        arguments.patience,
                    ),
                )
            case "cache":
                from commands import cache

                return cache.run(settings, arguments.action, as_json=arguments.json, to=arguments.to)
            case "keys":
                from commands import keys

                return keys.run(settings, arguments)
            case _:
                from commands import serve

                return serve.run(settings, download_only=arguments.download_only, force_cleanup=arguments.force_cleanup)
    except (SettingsError, CatalogError, ValueError) as error:
        print(f"switchyard: {error}", file=sys.stderr)
        return 2


def _flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings given as flags: only those, so that the environment and the file keep their say."""
    names = ("profile", "host", "port", "debug", "skip_download", "models_file")
    return {name: value for name in names if (value := getattr(arguments, name, None)) is not None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "main.py", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _common(parser, None)
    _serving(parser, None)
    verbs = parser.add_subparsers(dest="verb", metavar="verb", title="verbs")
    serve = verbs.add_parser("serve", help="serve the models (the default)")
    download = verbs.add_parser("download", help="fetch weights from the hub")
    download.add_argument("names", nargs="*", help="models to fetch; all that are missing if none is named")
    download.add_argument("--speech", action="store_true", help="also what qwen_omni needs to speak")
    models = verbs.add_parser("models", help="list the models, their weights and sizes")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.add_argument("--fit", action="store_true", help="show what each takes here, and which fit together")
    chat = verbs.add_parser("chat", help="talk to a model of a running server")
    chat.add_argument("model", help="its name, say deepseek")
    chat.add_argument("prompt", nargs="?", help="ask this once and leave")
    chat.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="FILE",
        help="image, audio or video to send along; may be repeated",
    )
    chat.add_argument("--url", help="the server's address (default http://127.0.0.1:5000)")
    batch = verbs.add_parser("batch", help="answer a file of prompts, one result per line")
    _batch(batch)
    moderate = verbs.add_parser("moderate", help="hold a video to a policy: a verdict, and a report")
    moderate_arguments.add_arguments(moderate)
    cache = verbs.add_parser("cache", help="list or prune the quantized weights kept between loads")
    cache.add_argument("action", choices=["list", "prune"])
    cache.add_argument("--json", action="store_true", help="list as JSON")
    cache.add_argument("--to", type=_size, metavar="SIZE", help="prune to this size (0: all; default: the limit)")
    doctor = verbs.add_parser("doctor", help="check this machine, the packages and the settings, and say what to do")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument("--host", default=argparse.SUPPRESS, help="check for this address instead of the settings'")
    doctor.add_argument("--port", type=int, default=argparse.SUPPRESS, help="check for this port")
    keys = verbs.add_parser("keys", help="make, list and revoke API keys")
    worker = verbs.add_parser("worker", help="take video moderation jobs from a queue of AWS")
    worker.description = "Take jobs until SIGTERM. Settings are environment variables: see docs/worker.md."
    worker.add_argument("--check", action="store_true", help="only tell by the health file whether one is well")
    verbs_of_keys = keys_arguments.add_arguments(keys)
    for verb in (serve, download, models, chat, batch, moderate, cache, doctor, keys, *verbs_of_keys):
        _common(verb, argparse.SUPPRESS)
    _serving(serve, argparse.SUPPRESS)
    return parser


def _common(parser: argparse.ArgumentParser, default: Any) -> None:
    """Add the flags of every verb. They may stand before or after it; after it, one left out must not hide one
    before."""
    parser.add_argument("--profile", default=default, help="catalog to serve: workstation (default) or pocket")
    parser.add_argument("--config", type=Path, default=default, metavar="FILE", help="YAML file of settings")
    parser.add_argument(
        "--models-file",
        type=Path,
        default=default,
        metavar="FILE",
        help="your own models.yaml (default: ./models.yaml)",
    )


def _size(text: str) -> int:
    from utils.units import parse_bytes  # only here: a missing package is told in one line, by main

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _batch(parser: argparse.ArgumentParser) -> None:
    parser.description = "Answer every line of a file. A run that was stopped is taken up by the same command."
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="FILE",
        help="one JSON value per line: a prompt as a string, an object of /generate's fields, "
        "or a line of OpenAI's batch format",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where the results go, in order")
    parser.add_argument("--model", help="its name, for lines that name none")
    parser.add_argument(
        "--url",
        help="the server's address (default: the settings' one, and if nobody answers there one started for this run)",
    )
    parser.add_argument("--concurrency", type=int, default=16, metavar="N", help="requests at a time (default 16)")
    parser.add_argument(
        "--retries",
        type=int,
        default=8,
        metavar="N",
        help="how often a line is asked again when the server is busy or gone (default 8)",
    )
    parser.add_argument("--timeout", help="deadline of each request, say 90 or 10m (default: the server's)")
    parser.add_argument(
        "--files",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder whose files lines may name, besides the input's; may be repeated",
    )
    parser.add_argument("--retry-failed", action="store_true", help="ask the lines again whose result is an error")
    parser.add_argument("--fresh", action="store_true", help="start over, whatever the output holds")


def _serving(parser: argparse.ArgumentParser, default: Any) -> None:
    flag = {"action": "store_true", "default": default}
    parser.add_argument("--host", default=default, help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=default, help="port to listen on (default 5000)")
    parser.add_argument("--debug", **flag, help="Flask's own server, debug log")
    parser.add_argument("--skip-download", **flag, help="do not fetch missing weights at start")
    parser.add_argument("--download-only", **flag, help="fetch missing weights, then exit")
    parser.add_argument("--force-cleanup", **flag, help="clear temporary files before serving")


if __name__ == "__main__":
    sys.exit(main())
