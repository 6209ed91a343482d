"""The fewest loads possible with the whole trace known: exact for service in order of arrival, and a lower bound for
any order in which no request waits longer than given. Dynamic programming over sets of resident models.
"""

import heapq
import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from bench.simulation.workload import Arrival

INFINITE = float("inf")


def arrival_order(arrivals: Sequence[Arrival], sizes: dict[str, int], budget: int) -> int:
    """Return the least number of loads that serve the requests in order of arrival: Belady's optimum.

    For models of one size it is optimal to evict the one that is needed again last (Belady, 1966). For several sizes it
    is not: so this follows every set of resident models that fits, with the fewest loads that lead to it. A smaller set
    than necessary never helps, so only the largest sets are kept.
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
        # One load per model leads from the best set to any other, so a set that costs more than that is of no use.
        reached = {there: loads for there, loads in following.items() if loads <= best + len(names)}
    return min(reached.values())


def _largest(models: frozenset[str], sizes: dict[str, int], room: int) -> list[frozenset[str]]:
    """Return the subsets that fit into ``room`` and to which no further model of the set can be added."""
    fitting: list[frozenset[str]] = []
    for count in range(len(models), -1, -1):
        for kept in map(frozenset, itertools.combinations(sorted(models), count)):
            if sum(sizes[name] for name in kept) <= room and not any(kept < other for other in fitting):
                fitting.append(kept)
    return fitting


def any_order(arrivals: Sequence[Arrival], sizes: dict[str, int], budget: int, patience: float) -> int:
    """Return a lower bound of the loads of any policy that lets no request wait longer than ``patience`` seconds.

    The order is free, the whole trace is known, loads and answers take no time, and any number are answered at once. So
    a real machine needs at least as many loads, and usually more.

    As nothing takes time, loads have to happen only at instants at which some request can wait no longer: a chain of
    loads before that can be put off until then. At such an instant any set of the models with waiters, those that are
    due among them, is loaded one after the other, and any set that fits stays. If all residents stay although the
    newcomers had no room beside them, the fewest residents that could make room are counted as loaded again.
    """
    names = sorted(sizes)
    size = [sizes[name] for name in names]
    times = [[arrival.at for arrival in arrivals if arrival.model == name] for name in names]
    everything = range(len(names))

    def following(model: int, now: float) -> float:
        position = bisect_right(times[model], now)
        return times[model][position] if position < len(times[model]) else INFINITE

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
    # A position is a set of residents and, for each other model, its earliest request not yet served. Positions are
    # taken in the order of the times at which some request in them can wait no longer.
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
            continue  # a better position was found
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
    """Whether no known position is at least as good as this one. Drops the known ones that this one is as good as.

    A position is at least as good as another if it costs no more after it has loaded what only the other has, and
    served what waits longer in it than in the other, for which all its residents may have to be loaded again.
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
