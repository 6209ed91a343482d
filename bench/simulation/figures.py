"""Figures of an outcome as plain JSON: waits, swaps, starvation and how good Retry-After was."""

import statistics
from collections.abc import Sequence
from typing import Any

from bench.simulation.machine import Job, Outcome, Promise
from bench.simulation.workload import BATCH, INTERACTIVE


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile; ``share`` from 0 to 1. 0 of no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def waits(jobs: Sequence[Job]) -> dict[str, float]:
    """Seconds from the first try to the lease, of those that got one."""
    found = [job.wait for job in jobs if job.granted is not None]
    named = {f"p{round(share * 100)}": percentile(found, share) for share in (0.5, 0.95, 0.99)}
    return {"mean": statistics.fmean(found or [0.0]), **named, "max": max(found, default=0.0)}


def summary(outcome: Outcome) -> dict[str, Any]:
    """Return the figures of one run; times in seconds."""
    models = sorted({job.model for job in outcome.jobs})
    return {
        "requests": len(outcome.jobs),
        "answered": sum(job.done is not None for job in outcome.jobs),
        "refused": dict(outcome.refusals),
        "swaps": outcome.swaps,
        "evictions": outcome.evictions,
        "seconds": outcome.seconds,
        "loading_share": outcome.loading / outcome.seconds if outcome.seconds else 0.0,
        "wait": waits(outcome.jobs),
        "interactive": waits([job for job in outcome.jobs if job.priority == INTERACTIVE]),
        "batch": waits([job for job in outcome.jobs if job.priority == BATCH]),
        "models": {
            model: {
                "requests": sum(job.model == model for job in outcome.jobs),
                "loads": outcome.loads[model],
                **waits([job for job in outcome.jobs if job.model == model]),
            }
            for model in models
        },
    }


def honesty(promises: Sequence[Promise]) -> dict[str, float]:
    """Return how good ``Retry-After`` was: told against true seconds until a request would have been admitted.

    ``close`` is the share that was within two seconds or a factor of two, ``ratio`` the median of told over true.
    """
    if not promises:
        return {"told": 0}
    ratios = [promise.predicted / max(promise.actual, 1e-9) for promise in promises]
    errors = [abs(promise.predicted - promise.actual) for promise in promises]
    close = [error <= 2 or 0.5 <= ratio <= 2 for error, ratio in zip(errors, ratios, strict=True)]
    return {
        "told": len(promises),
        "mean_told": statistics.fmean(promise.predicted for promise in promises),
        "mean_true": statistics.fmean(promise.actual for promise in promises),
        "ratio": statistics.median(ratios),
        "median_error": statistics.median(errors),
        "p90_error": percentile(errors, 0.9),
        "close": sum(close) / len(close),
    }
