"""The traces: made from a seed, or read from a file of somebody's real requests.

The workstation has an 11 GB slot, the five models of the workstation profile and a sixth. Loads come from a page cache
that is not always warm: 3 s and one for each half gigabyte. Answers take seconds, log-normally spread.
"""

import csv
import datetime
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from bench.simulation.workload import BATCH, INTERACTIVE, Arrival, Client, Profile, Workload

GB = 10**9
BUDGET = 11 * GB
_TWINS = "deepseek", "qwen_audio"  # too large to be loaded together


def _profile(name: str, size: float, concurrency: int) -> Profile:
    return Profile(name, int(size * GB), load=3 + size / 0.5, concurrency=concurrency)


PROFILES = (
    _profile("deepseek", 6.0, 8),
    _profile("qwen_vl", 3.0, 4),
    _profile("qwen_audio", 6.0, 4),
    _profile("qwen_omni", 4.5, 4),
    _profile("blip_vqa", 0.6, 8),
    _profile("coder", 5.0, 8),
)
WORK = {"deepseek": 3.0, "qwen_vl": 1.5, "qwen_audio": 1.5, "qwen_omni": 2.0, "blip_vqa": 0.2, "coder": 2.0}
"""Median seconds of an answer made alone."""
POPULARITY = ("deepseek", "qwen_vl", "coder", "blip_vqa", "qwen_omni", "qwen_audio")


def _work(random: Random, model: str) -> float:
    return WORK[model] * random.lognormvariate(0, 0.5)


def _workload(name: str, seed: int, arrivals: Iterable[Arrival] = (), clients: Sequence[Client] = ()) -> Workload:
    ordered = tuple(sorted(arrivals, key=lambda arrival: arrival.at))
    return Workload(name, PROFILES, BUDGET, ordered, tuple(clients), seed)


def _poisson(random: Random, rate: float, start: float, end: float) -> Iterable[float]:
    at = start + random.expovariate(rate)
    while at < end:
        yield at
        at += random.expovariate(rate)


def alternating(seed: int = 1, requests: int = 600, every: float = 2.0) -> Workload:
    """A, B, A, B … at regular intervals, two models that do not fit together: the worst order there is."""
    random = Random(seed)
    asks = [(number * every, _TWINS[number % 2]) for number in range(requests)]
    return _workload("alternating", seed, (Arrival(at, model, _work(random, model)) for at, model in asks))


def two_clients(seed: int = 1, requests: int = 600, clients: int = 2, think: float = 0.0, name: str = "") -> Workload:
    """Clients that each send their next request when the last one was answered, half to A and half to B."""
    random, each = Random(seed), requests // clients
    built = [
        Client(0.01 * number, think, tuple((model, _work(random, model)) for _ in range(each)))
        for number, model in zip(range(clients), itertools.cycle(_TWINS), strict=False)
    ]
    return _workload(name or f"{clients} clients", seed, clients=built)


def eight_clients(seed: int = 1, requests: int = 600) -> Workload:
    """The same with four clients for each of the two models, each thinking for a second."""
    return two_clients(seed, requests, clients=8, think=1.0, name="8 clients")


def one_client(seed: int = 1, requests: int = 100) -> Workload:
    """A single client that asks A and B in turn: each waits for the other's answer, so that nothing can be saved."""
    random = Random(seed)
    asks = tuple((_TWINS[number % 2], _work(random, _TWINS[number % 2])) for number in range(requests))
    return _workload("1 client", seed, clients=[Client(0.0, 0.5, asks)])


def bursty(seed: int = 1, seconds: float = 3600, pause: float = 240) -> Workload:
    """Each model is silent for minutes, then asked several times a second for half a minute or so."""
    random = Random(seed)
    arrivals = []
    for profile in PROFILES:
        at = random.expovariate(1 / pause)
        while at < seconds:
            stop = at + random.expovariate(1 / 30)
            arrivals += [
                Arrival(when, profile.name, _work(random, profile.name))
                for when in _poisson(random, 1.0, at, min(stop, seconds))
            ]
            at = stop + random.expovariate(1 / pause)
    return _workload("bursty", seed, arrivals)


def zipf(seed: int = 1, seconds: float = 3600, rate: float = 0.25, exponent: float = 1.0) -> Workload:
    """Independent requests, the n-th most popular model asked for with a weight of 1/n: no order to make use of."""
    random = Random(seed)
    weights = [1 / rank**exponent for rank in range(1, len(POPULARITY) + 1)]
    arrivals = []
    for at in _poisson(random, rate, 0, seconds):
        [model] = random.choices(POPULARITY, weights)
        arrivals.append(Arrival(at, model, _work(random, model)))
    return _workload("zipf", seed, arrivals)


def quiet(seed: int = 1) -> Workload:
    """Zipf again, but a request a minute: hardly ever do two wait at once, so that nothing can be served out of
    order."""
    return replace(zipf(seed, seconds=4 * 3600, rate=1 / 60), name="quiet")


def mixed(seed: int = 1, seconds: float = 3600, rate: float = 0.12) -> Workload:
    """Zipf, bursts and alternation over one another; a third of the Zipf requests are batch, all others interactive."""
    random = Random(seed)
    arrivals = [
        Arrival(arrival.at, arrival.model, arrival.work, BATCH if random.random() < 1 / 3 else INTERACTIVE)
        for arrival in zipf(seed, seconds, rate).arrivals
    ]
    arrivals += bursty(seed + 1, seconds, pause=900).arrivals
    for start in range(300, int(seconds) - 120, 900):
        for number in range(30):
            model = _TWINS[number % 2]
            arrivals.append(Arrival(start + 4.0 * number, model, _work(random, model)))
    return _workload("mixed", seed, arrivals)


def flood(seed: int = 1, seconds: float = 900) -> Workload:
    """Interactive requests for one model without a pause, and a batch request for another now and then."""
    random = Random(seed)
    arrivals = [Arrival(at, "deepseek", _work(random, "deepseek")) for at in _poisson(random, 0.9, 0, seconds)]
    arrivals += [
        Arrival(at, "qwen_audio", _work(random, "qwen_audio"), BATCH) for at in _poisson(random, 0.03, 0, seconds)
    ]
    return _workload("flood", seed, arrivals)


Trace = Callable[..., Workload]
TRACES: dict[str, Trace] = {
    "alternating": alternating,
    "2 clients": two_clients,
    "8 clients": eight_clients,
    "1 client": one_client,
    "bursty": bursty,
    "zipf": zipf,
    "quiet": quiet,
    "mixed": mixed,
    "flood": flood,
}


def read_csv(paths: Sequence[Path], every: int = 1, seconds: float = 3600, seed: int = 1) -> Workload:
    """Read real requests: columns ``TIMESTAMP`` (or ``Timestamp``), prompt and generated tokens, perhaps ``Model``.

    The public traces of LLM services come in this form: ``ContextTokens,GeneratedTokens`` or
    ``Request tokens,Response tokens``. They tell when and how long, not which of many models, and come from many
    machines. So the rule is: the files' requests are merged by time of day from each file's first one, every
    ``every``-th is kept, and each distinct pair of file and ``Model`` is a service. Services share the models out in
    order of popularity; a service with several models gives each request to one of them at random, by the Zipf weight
    of its rank. An answer takes a second for 4000 prompt tokens and one for 40 generated ones.

    :raises ValueError: naming the file and what is wrong with it.
    """
    rows: list[tuple[float, str, float]] = []
    for path in paths:
        with path.open(newline="") as file:
            first = None
            for row in csv.DictReader(file):
                at, service, work = _row(path, row)
                first = at if first is None else first
                if at - first > seconds:
                    break
                rows.append((at - first, f"{path.name} {service}", work))
    if not rows:
        raise ValueError(f"{', '.join(map(str, paths))}: no requests")
    rows = sorted(rows)[::every]
    random, services = Random(seed), sorted({service for _, service, _ in rows})
    share = {service: POPULARITY[rank :: len(services)] or POPULARITY[-1:] for rank, service in enumerate(services)}
    arrivals = []
    for at, service, work in rows:
        weights = [1 / (1 + POPULARITY.index(model)) for model in share[service]]
        arrivals.append(Arrival(at, random.choices(share[service], weights)[0], work))
    return _workload("+".join(path.stem for path in paths), seed, arrivals)


def _row(path: Path, row: dict[str, str]) -> tuple[float, str, float]:
    try:
        stamp = row.get("TIMESTAMP") or row["Timestamp"]
        prompt = float(row.get("ContextTokens") or row.get("Request tokens") or "nan")
        made = float(row.get("GeneratedTokens") or row.get("Response tokens") or "nan")
        try:
            at = float(stamp)
        except ValueError:
            at = datetime.datetime.fromisoformat(stamp[:26]).timestamp()
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: {row} is no request: {error}") from error
    if math.isnan(prompt) or math.isnan(made):
        raise ValueError(f"{path}: needs ContextTokens and GeneratedTokens, or Request tokens and Response tokens")
    return at, row.get("Model") or "", prompt / 4000 + made / 40
