"""A load tool: many users and many models at once, by Locust as a library. ``python -m bench.load --help``.

Measures a running gateway (``--url``), or starts one on the pocket profile. ``--users`` people ask again as soon as
they have an answer (closed loop). With ``--rate``, requests arrive at random moments at that rate however long answers
take (open loop, as on the internet; it shows growing queues). ``--mix`` sets the weights of the questions: texts, sums,
and the pictures, sounds and films of ``examples/`` for models that take them.

*TTFT* is the time from sending a request to its first text, *gap* the time between two pieces of text, *total* the time
to the end. One event may carry several tokens or none, so tokens are counted by the ``usage`` of the last event. Locust
provides users, statistics and events; its HTTP client cannot time the pieces of a stream. Importing Locust replaces
this process's sockets and threads by gevent's, so no other module imports this one.
"""

from locust import User, constant, task  # first: it patches the standard library
from locust.env import Environment
from locust.exception import StopUser

# isort: split
import argparse
import base64
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import matplotlib

matplotlib.use("Agg")

from gevent.pool import Group
from matplotlib import pyplot

from bench import report
from bench.clients import Answer, Client, Question
from tests.support.gateway import ROOT, GatewayProcess

EXAMPLES = ROOT / "examples"
_ABOUT = ("a fox", "the sea", "bread", "a clock", "winter", "two brothers", "a lighthouse", "paper", "the road", "tea")
_PICTURE, _SQUARES, _SOUND, _FILM = "red-circle.png", "three-squares.jpg", "rising.wav", "moves-left.mp4"


class Mix:
    """Draws models and questions by weight. ``text`` is like ``deepseek:70,qwen_vl:20``."""

    def __init__(self, text: str, tokens: int, stream: bool, chance: random.Random) -> None:
        """:raises ValueError: for an invalid mix."""
        self._tokens, self._stream, self._chance = tokens, stream, chance
        self.weights: dict[str, float] = {}
        for part in text.split(","):
            model, _, weight = part.strip().partition(":")
            self.weights[model] = float(weight or 1)
        if not all(model and weight > 0 for model, weight in self.weights.items()):
            raise ValueError(f"{text!r} is no mix such as deepseek:70,qwen_vl:20")
        self._media = {
            name: base64.b64encode((EXAMPLES / name).read_bytes()).decode()
            for name in (_PICTURE, _SQUARES, _SOUND, _FILM)
        }

    def draw(self) -> tuple[str, Question]:
        """Return a model and a question for it."""
        model = self._chance.choices(list(self.weights), list(self.weights.values()))[0]
        body = self.fields(model) | {"max_new_tokens": self._tokens, "stream": self._stream}
        return model, Question(f"/generate/{model}", body)

    def fields(self, model: str) -> dict[str, Any]:
        """Return what to ask of a model."""
        media, chance = self._media, self._chance
        match model:
            case "reasoner":
                return {"prompt": f"What is {chance.randint(1, 49)} + {chance.randint(1, 49)}?"}
            case "blip_vqa":
                return {"prompt": "How many squares?", "image": media[_SQUARES]}
            case "qwen_vl" if chance.random() < 0.25:
                return {"prompt": "Which way does it move?", "video": media[_FILM]}
            case "qwen_vl":
                return {"prompt": "What color is the circle?", "image": media[_PICTURE]}
            case "qwen_audio":
                return {"prompt": "Is the pitch rising or falling?", "audio": media[_SOUND]}
            case "qwen_omni":
                return {
                    "prompt": "What color is the shape and is the pitch rising or falling?",
                    "image": media[_PICTURE],
                    "audio": media[_SOUND],
                }
            case _:
                return {"prompt": f"Tell me about {chance.choice(_ABOUT)}, in {chance.randint(20, 200)} words."}


@dataclass
class Plan:
    """What all users share: questions, rate, and answers so far."""

    url: str
    mix: Mix
    left: float
    rate: float | None
    chance: random.Random
    answers: list[tuple[str, Answer]] = field(default_factory=list)

    def ask(self, environment: Environment, client: Client) -> None:
        """Ask one question and tell Locust."""
        model, question = self.mix.draw()
        answer = client.ask(question)
        self.answers.append((model, answer))
        failure = None if answer.good else RuntimeError(f"{answer.status or 'no answer'}: {answer.error}")
        environment.events.request.fire(
            request_type="POST",
            name=model,
            response_time=answer.total * 1e3,
            response_length=answer.tokens,
            exception=failure,
            context={},
        )


class Person(User):  # type: ignore[misc]
    """Asks, reads the answer, asks again."""

    wait_time = constant(0)

    def on_start(self) -> None:
        self.client = Client(self.environment.plan.url)

    @task
    def ask(self) -> None:
        plan = self.environment.plan
        if plan.left < 1:
            raise StopUser
        plan.left -= 1
        plan.ask(self.environment, self.client)


class Arrivals(User):  # type: ignore[misc]
    """All users of an open loop: each arrives at its time and asks once."""

    wait_time = constant(0)
    fixed_count = 1

    def on_start(self) -> None:
        self.visits = Group()

    @task
    def arrive(self) -> None:
        plan = self.environment.plan
        if plan.left < 1:
            self.visits.join()
            raise StopUser
        plan.left -= 1
        self.visits.spawn(self._visit, plan)
        gevent.sleep(plan.chance.expovariate(plan.rate))

    def on_stop(self) -> None:
        self.visits.join()

    def _visit(self, plan: Plan) -> None:
        with Client(plan.url) as client:
            plan.ask(self.environment, client)


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    machine, chance = report.machine(), random.Random(arguments.seed)
    try:
        mix = Mix(arguments.mix, arguments.max_tokens, arguments.stream, chance)
    except ValueError as error:
        print(f"bench.load: {error}", file=sys.stderr)
        return 2
    with _server(arguments.url, arguments.warm_up, mix) as url:
        limit = arguments.requests or float("inf")
        plan = Plan(url, mix, limit, arguments.rate, chance)
        seconds = _run(plan, arguments)
    figures = _figures(plan.answers, seconds)
    for failure, count in Counter(answer.error for _, answer in plan.answers if not answer.good).most_common(3):
        print(f"{count} × {failure}", file=sys.stderr)
    print(report.plain(_HEADS, _rows(figures)))
    arguments.to.mkdir(parents=True, exist_ok=True)
    _draw(plan.answers, arguments.to / f"{arguments.name}.png")
    found = {
        "machine": machine,
        "seconds": seconds,
        "mix": mix.weights,
        "users": arguments.users,
        "rate": arguments.rate,
        "stream": arguments.stream,
        "max_tokens": arguments.max_tokens,
        "figures": figures,
        "answers": [_plain(model, answer) for model, answer in plan.answers],
    }
    report.save(arguments.name, found, arguments.to, page=report.table(_HEADS, _rows(figures)))
    return 0 if any(answer.good for _, answer in plan.answers) else 1


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("bench.load", description="Put a gateway under load and measure what clients see.")
    parser.add_argument("--url", help="a running gateway (default: start one on the pocket profile)")
    parser.add_argument("--users", "--concurrency", type=int, default=8, help="people who ask (default 8)")
    parser.add_argument("--rate", type=float, help="arrivals a second instead of people: an open loop")
    parser.add_argument("--duration", type=float, default=60.0, help="seconds to ask for (default 60)")
    parser.add_argument("--requests", type=int, help="stop after so many, if that is sooner")
    parser.add_argument("--mix", default="deepseek:70,qwen_vl:20,qwen_audio:10", help="models and their weights")
    parser.add_argument("--max-tokens", type=int, default=64, help="most tokens of an answer (default 64)")
    parser.add_argument("--stream", action=argparse.BooleanOptionalAction, default=True, help="stream answers")
    parser.add_argument(
        "--warm-up",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask every model once before, so that no load is measured",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is asked and when (default 0)")
    parser.add_argument("--name", default="load", help="of the files written (default load)")
    parser.add_argument("--to", type=Path, default=report.PAGES, help="folder for the figures")
    arguments = parser.parse_args(argv)
    if arguments.users < 1 or arguments.duration <= 0 or (arguments.rate is not None and arguments.rate <= 0):
        parser.error("--users, --duration and --rate must be more than 0")
    return arguments


@contextmanager
def _server(url: str | None, warm_up: bool, mix: Mix) -> Iterator[str]:
    """Yield the address of the gateway to measure; start one if none is given."""
    with tempfile.TemporaryDirectory() as home:
        own = None if url else GatewayProcess(Path(home), cpu_threads=0, keep_alive=-1).start().preloaded()
        address = url or (own.url if own else "")
        try:
            for model in mix.weights if warm_up else ():
                question = Question(f"/generate/{model}", mix.fields(model) | {"max_new_tokens": 4})
                with Client(address) as client:
                    answer = client.ask(question)
                if not answer.good:
                    raise SystemExit(f"bench.load: {model} answers {answer.status}: {answer.error}")
            yield address
        finally:
            if own:
                own.stop()


def _run(plan: Plan, arguments: argparse.Namespace) -> float:
    """Run the users; return the seconds until the last answer."""
    open_loop = plan.rate is not None
    environment = Environment(user_classes=[Arrivals if open_loop else Person], stop_timeout=600)
    environment.plan = plan
    runner = environment.create_local_runner()
    users = 1 if open_loop else arguments.users
    started = time.perf_counter()
    runner.start(users, spawn_rate=users)
    while runner.user_count or time.perf_counter() - started < 1:
        if time.perf_counter() - started > arguments.duration:
            plan.left = 0
        gevent.sleep(0.05)
    runner.quit()
    return max((answer.ended for _, answer in plan.answers), default=started) - started


def _figures(answers: list[tuple[str, Answer]], seconds: float) -> dict[str, Any]:
    """Return the figures of each model and of all."""
    found = {}
    for name in [*dict.fromkeys(sorted(model for model, _ in answers)), "all"]:
        own = [answer for model, answer in answers if name in (model, "all")]
        good = [answer for answer in own if answer.good]
        found[name] = {
            "requests": len(own),
            "statuses": dict(sorted(Counter(str(answer.status) for answer in own).items())),
            "requests_per_second": len(good) / seconds,
            "tokens": sum(answer.tokens for answer in good),
            "tokens_per_second": sum(answer.tokens for answer in good) / seconds,
            "ttft": report.spread([answer.first for answer in good]),
            "gap": report.spread([gap for answer in good for gap in answer.gaps]),
            "total": report.spread([answer.total for answer in good]),
        }
    return found


_HEADS = (
    "model",
    "requests",
    "by status",
    "answers/s",
    "tokens/s",
    "TTFT p50, s",
    "p95",
    "p99",
    "gap p50, s",
    "p95",
    "p99",
    "total p50, s",
    "p95",
    "p99",
)


def _rows(figures: dict[str, Any]) -> Iterator[list[Any]]:
    for name, found in figures.items():
        statuses = ", ".join(f"{count} × {status}" for status, count in found["statuses"].items())
        shares = [found[what].get(share) for what in ("ttft", "gap", "total") for share in ("p50", "p95", "p99")]
        yield [name, found["requests"], statuses, found["requests_per_second"], found["tokens_per_second"], *shares]


def _plain(model: str, answer: Answer) -> dict[str, Any]:
    return {
        "model": model,
        "status": answer.status,
        "started": round(answer.started, 4),
        "tokens": answer.tokens,
        "ttft": round(answer.first, 4),
        "total": round(answer.total, 4),
        "pieces": len(answer.pieces),
    }


def _draw(answers: list[tuple[str, Answer]], path: Path) -> None:
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), layout="constrained")
    beginning = min((answer.started for _, answer in answers), default=0.0)
    for model in sorted({model for model, _ in answers}):
        good = [answer for name, answer in answers if name == model and answer.good]
        axes[0, 0].plot(
            [answer.started - beginning for answer in good], [answer.first for answer in good], ".", label=model
        )
        shown = {
            axes[0, 1]: [answer.first for answer in good],
            axes[1, 0]: [gap for answer in good for gap in answer.gaps],
            axes[1, 1]: [answer.total for answer in good],
        }
        for axis, values in shown.items():
            if values:
                axis.ecdf(values, label=model)
    axes[0, 0].set(xlabel="seconds since the beginning", ylabel="TTFT, s", ylim=(0, None), title="Time to first text")
    for axis, name in ((axes[0, 1], "TTFT"), (axes[1, 0], "gap between two pieces"), (axes[1, 1], "total")):
        axis.set(xlabel=f"{name}, s", ylabel="share of all", xlim=(0, None))
    axes[0, 0].legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
