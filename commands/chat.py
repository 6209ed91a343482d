"""``python main.py chat <model>``: a conversation in the terminal with a running gateway.

The command line's process, a client of ``POST /generate/<model>``.
"""

import base64
import json
import mimetypes
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import httpx
from rich.console import Console

from commands import credentials
from commands.own_server import server_url
from commands.verb import Verb, pass_settings
from utils.error_responses import error_reason
from utils.settings import Settings

_HELP = """Type a message and press Enter. Commands:
  /attach FILE …   send these files (image, audio, video) with the next message
  /system TEXT     set the system prompt and start anew
  /new             forget the conversation
  /help            this text
  /quit            leave (Ctrl-D too); Ctrl-C stops an answer"""
_KINDS = {"image": "images", "audio": "audios", "video": "videos"}


class ChatError(click.ClickException):
    """The gateway refused. The message is its answer."""


@click.command("chat", cls=Verb)
@click.argument("model", help="its name, say deepseek")
@click.argument("prompt", required=False, help="ask this once and leave")
@click.option("--file", "files", multiple=True, metavar="FILE", help="image, audio or video to send; may be repeated")
@click.option("--url", help="the server's address (default http://127.0.0.1:5000)")
@pass_settings
def chat_command(settings: Settings, model: str, prompt: str | None, files: tuple[str, ...], url: str | None) -> None:
    """Talk to a model of a running server until you leave, or ask it one prompt."""
    console = Console(highlight=False, soft_wrap=True)
    session = Session(url or server_url(settings), model)
    try:
        session.attach_files(files)
        if prompt is not None:
            _show_answer(console, session, prompt)
            return
        console.print(f"[bold]{session.describe_model()}[/bold]\n[dim]/help lists the commands[/dim]")
        while True:
            line = console.input("[bold green]> [/bold green]").strip()
            try:
                if not _run_chat_command(console, session, line):
                    _show_answer(console, session, line)
            except (ChatError, OSError, httpx.HTTPError) as error:
                console.print(str(error), style="red", markup=False)
    except OSError as error:
        raise ChatError(str(error)) from error
    except httpx.HTTPError as error:
        raise ChatError(f"no answer from {session.url}: {error}; is the server running?") from error
    except EOFError:  # Ctrl-D or /quit
        return


class Session:
    """The conversation, and the files for the next message."""

    def __init__(self, url: str, model: str) -> None:
        self.url = url.rstrip("/")
        self.model = model
        self.system: str | None = None
        self.said: list[dict[str, str]] = []
        self.attached: dict[str, list[str]] = {}
        self._client = httpx.Client(
            base_url=self.url, timeout=httpx.Timeout(10, read=None), trust_env=False, headers=credentials.headers()
        )

    def describe_model(self) -> str:
        """Return the model's name, label and inputs. :raises ChatError: if the gateway does not know it."""
        answer = self._client.get("/admin/model_status")
        if answer.status_code != 200:
            return self.model  # the key may not use /admin
        found = answer.json()["model_configs"]
        for name, config in found.items():
            if self.model == name or self.model in config["aliases"]:
                return f"{name}: {config['label']} (takes {', '.join(config['inputs'])})"
        raise ChatError(f"there is no model {self.model!r}; known models: {', '.join(found)}")

    def attach_files(self, files: Iterable[str]) -> None:
        """Read files to send with the next message. :raises ChatError: for any other kind of file."""
        for name in files:
            path = Path(name).expanduser()
            kind = (mimetypes.guess_type(path.name)[0] or "").partition("/")[0]
            if kind not in _KINDS:
                raise ChatError(f"{path} is no image, audio or video, by its name")
            self.attached.setdefault(_KINDS[kind], []).append(base64.b64encode(path.read_bytes()).decode())

    def stream_answer(self, prompt: str) -> Iterator[dict[str, Any]]:
        """Send the prompt and yield the answer's events. :raises ChatError: if the gateway refuses."""
        body: dict[str, Any] = {"prompt": prompt, "stream": True, **self.attached}
        before = [{"role": "system", "content": self.system}] if self.system else []
        if before or self.said:
            body["messages"] = [*before, *self.said]
        answer = ""
        with self._client.stream("POST", f"/generate/{self.model}", json=body) as response:
            if response.status_code != 200:
                response.read()
                raise ChatError(": ".join(error_reason(response)))
            for line in response.iter_lines():
                if not line.startswith("data: "):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise ChatError(f"{event['error']}: {event['details']}")
                answer += event.get("response", "")
                yield event
        self.attached = {}
        self.said += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _run_chat_command(console: Console, session: Session, line: str) -> bool:
    """Carry out a command; return False for a message. :raises EOFError: to leave."""
    verb, _, rest = line.partition(" ")
    match verb:
        case "":
            pass
        case "/quit" | "/exit":
            raise EOFError
        case "/help":
            console.print(_HELP)
        case "/new":
            session.said = []
        case "/system":
            session.system, session.said = rest.strip() or None, []
        case "/attach":
            session.attach_files(shlex.split(rest))
            console.print(f"[dim]{sum(map(len, session.attached.values()))} file(s) go with the next message[/dim]")
        case _ if verb.startswith("/"):
            console.print(f"no command {verb}; /help lists them")
        case _:
            return False
    return True


def _show_answer(console: Console, session: Session, prompt: str) -> None:
    """Print the answer as it arrives, with dimmed reasoning. Ctrl-C stops it."""
    thinking = False
    try:
        for event in session.stream_answer(prompt):
            if text := event.get("reasoning"):
                thinking = True
                console.print(text, end="", style="dim", markup=False)
            elif text := event.get("response"):
                if thinking:
                    console.print("\n")
                    thinking = False
                console.print(text, end="", markup=False)
            elif event.get("done"):
                tokens, seconds = event["usage"]["completion_tokens"], event["timings"]
                console.print(
                    f"\n[dim]{tokens} tokens, first after {seconds['first_token']:.2f} s, "
                    f"{seconds['total']:.2f} s in all[/dim]"
                )
    except KeyboardInterrupt:
        console.print("\n[dim]stopped[/dim]")
