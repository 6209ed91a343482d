"""How few loads are possible for somebody who knows the whole trace: exact for service in order of arrival, and a lower
bound for any order in which nobody waits longer than given. Dynamic programming over sets of resident models.
"""

import heapq
import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from bench.simulation.workload import Arrival

INFINITE = float("inf")


def arrival_order(arrivals: Sequence[Arrival], sizes: dict[str, int], budget: int) -> int:
    """Return the least number of loads that serve the requests in order of arrival: Belady's optimum.

    For models of one size evicting the one that is needed again last is optimal (Belady, 1966). For models of several
    sizes it is not, so all sets of resident models that fit are followed, keeping the fewest loads that lead to each.
    Going to a smaller set than necessary never helps, so only the largest ones are kept.
    """
    names = list(sizes)
    reached: dict[frozenset[str], int] = {frozenset(): 0}
    for model, _ in itertools.groupby(arrival.model for arrival in arrivals):
        following: dict[frozenset[str], int] = {}
        for there, loads in reached.items():
            options = (
                [(there, loads)]
                if model in there
                else [(frozenset(kept) | {model}, loads + 1) for kept in _largest(there, sizes, budget - sizes[model])]
            )
            for option, cost in options:
                following[option] = min(cost, following.get(option, cost))
        best = min(following.values())
        # From the best set any other can be had for one load per model, so what costs more than that leads nowhere.
        reached = {there: loads for there, loads in following.items() if loads <= best + len(names)}
    return min(reached.values())


def _largest(models: frozenset[str], sizes: dict[str, int], room: int) -> list[frozenset[str]]:
    """The subsets that fit into ``room`` and to which no further model of the set could be added."""
    fitting: list[frozenset[str]] = []
    for count in range(len(models), -1, -1):
        for kept in map(frozenset, itertools.combinations(sorted(models), count)):
            if sum(sizes[name] for name in kept) <= room and not any(kept < other for other in fitting):
                fitting.append(kept)
    return fitting


def any_order(arrivals: Sequence[Arrival], sizes: dict[str, int], budget: int, patience: float) -> int:
    """Return a number of loads below which nobody can go who lets no request wait longer than ``patience`` seconds.

    The order is free, the whole trace known, loads and answers take no time, and any number are answered at once; so a
    real machine needs at least as many loads, and with loads that take seconds it usually needs more.

    With no time spent, loads need to happen only in chains at instants at which some request can wait no longer: any
    earlier chain may be put off until then, or until the next one, without anybody waiting too long. At such an instant
    any set of the models that are waited for, those that are due among them, is loaded one after the other, and any set
    that fits stays. If everything that was there stays, and the newcomers found no room beside it, as few of those as
    could make room are counted once more, for being loaded again.
    """
    names = sorted(sizes)
    size = [sizes[name] for name in names]
    times = [[arrival.at for arrival in arrivals if arrival.model == name] for name in names]
    everything = range(len(names))

    def following(model: int, now: float) -> float:
        place = bisect_right(times[model], now)
        return times[model][place] if place < len(times[model]) else INFINITE

    sets = [frozenset(chosen) for chosen in _subsets(everything)]
    fits = {there: sum(size[model] for model in there) <= budget for there in sets}
    again = {
        (stay, largest): min(
            len(stay - kept) for kept in sets if kept <= stay and sum(size[m] for m in kept) + largest <= budget
        )
        for stay in sets
        if fits[stay]
        for largest in {0, *size}
    }
    # A position is a set of residents and, per other model, its earliest request not yet served. Taken by the time at
    # which somebody in it can wait no longer.
    start = frozenset[int](), tuple(following(model, -1.0) for model in everything)
    frontier: dict[frozenset[int], list[tuple[int, tuple[float, ...]]]] = {start[0]: [(0, start[1])]}
    due = min(start[1]) + patience
    agenda = [(due, 0, 0, *start)]
    counter = itertools.count(1)
    best = 0
    while agenda:
        now, loads, _, there, since = heapq.heappop(agenda)
        if now == INFINITE:
            return min(loads, *(entry[1] for entry in agenda)) if agenda else loads
        if (loads, since) not in frontier[there]:
            continue  # another position has turned out to be better
        frontier[there].remove((loads, since))
        waited = [model for model in everything if model not in there and since[model] <= now]
        forced = {model for model in waited if since[model] + patience <= now}
        optional = [model for model in waited if model not in forced]
        for more in _subsets(optional):
            served = forced | set(more)
            for stay in _stays(there | served, fits, sets):
                transient = max((size[model] for model in served - stay), default=0)
                cost = loads + len(served) + again[stay & there, transient]
                left = tuple(
                    INFINITE
                    if model in stay
                    else following(model, now)
                    if model in served or model in there
                    else since[model]
                    for model in everything
                )
                if _worthwhile(frontier, cost, stay, left):
                    frontier.setdefault(stay, []).append((cost, left))
                    heapq.heappush(agenda, (min(left) + patience, cost, next(counter), stay, left))
    return best


def _subsets(among: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(among, count) for count in range(len(among) + 1))


def _stays(among: frozenset[int], fits: dict[frozenset[int], bool], sets: list[frozenset[int]]) -> list[frozenset[int]]:
    return [
        there
        for there in sets
        if fits[there] and there <= among and not any(fits[there | {model}] for model in among - there)
    ]


def _worthwhile(
    frontier: dict[frozenset[int], list[tuple[int, tuple[float, ...]]]],
    cost: int,
    stay: frozenset[int],
    left: tuple[float, ...],
) -> bool:
    """Whether no position known so far is at least as good; drops those to which this one is.

    One is at least as good as another if it has cost no more, after loading what the other has and it has not, and
    after serving what waits longer in it than in the other; for which all that is there may have to be loaded again.
    """

    def better(
        cost: int,
        there: frozenset[int],
        since: tuple[float, ...],
        other_cost: int,
        other: frozenset[int],
        other_since: tuple[float, ...],
    ) -> bool:
        cost += len(other - there)
        if cost > other_cost:
            return False
        late = sum(since[m] < other_since[m] for m in range(len(since)) if m not in there and m not in other)
        return cost + late + (len(there & other) if late else 0) <= other_cost

    for there, known in frontier.items():
        if any(better(old, there, since, cost, stay, left) for old, since in known):
            return False
    for there, known in frontier.items():
        known[:] = [entry for entry in known if not better(cost, stay, left, entry[0], there, entry[1])]
    return True
