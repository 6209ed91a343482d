"""From answers about frames to a decision: what violates, for how long, and whether that is too much.

Pure functions. Must not know how frames were taken or questions asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from moderation.asking import Questions
from moderation.policy import DECISIONS, SEVERITIES, Category, Decision, Policy, Severity, Threshold
from moderation.result import CategoryVerdict, FrameFinding, Interval, NotSeen, Said
from moderation.sampling import Unseen


@dataclass(frozen=True)
class Shown:
    """A frame without its picture."""

    index: int
    time: float
    start: float
    end: float


@dataclass
class Judged:
    """What is known of one frame: answers by the questions' numbers, and why some are missing."""

    frame: Shown
    answers: dict[int, str] = field(default_factory=dict)
    description: str = ""
    failed: str = ""


@dataclass(frozen=True)
class Verdict:
    """The decision and what it stands on."""

    decision: Decision
    severity: Severity | None
    summary: str
    categories: list[CategoryVerdict]
    frames: list[FrameFinding]
    not_seen: list[NotSeen]
    coverage: float
    judged: int


def decide(
    policy: Policy, questions: Questions, judged: Sequence[Judged], unseen: Sequence[Unseen], fps: float,
    duration: float,
) -> Verdict:  # fmt: skip
    """Return the verdict on a video from its frames, in order, and the stretches that have none.

    :param fps: the rate that was wanted: a frame counts for ``1 / fps`` seconds at most.
    """
    frames = [_finding(policy, questions, one) for one in judged]
    whole = {one.frame.index for one in judged if not one.failed}
    categories = [_category(category, frames, whole, 1 / fps) for category in policy.categories]
    missing = [NotSeen(start=_round(one.start), end=_round(one.end), reason=one.reason) for one in unseen]
    missing += [NotSeen(start=_round(one.frame.start), end=_round(one.frame.end), reason=one.failed)
                for one in judged if one.failed]  # fmt: skip
    missing = _joined(sorted(missing, key=lambda one: (one.start, one.end)))
    decision: Decision = max((one.decision for one in categories), key=DECISIONS.index)
    guilty = [one for one in categories if one.decision == decision and decision != "allow"]
    severity: Severity | None = max((one.severity for one in guilty), key=SEVERITIES.index, default=None)
    reasons = [f"{one.title}: {one.reason}" for one in guilty]
    if missing and DECISIONS.index(policy.unseen) > DECISIONS.index(decision):
        decision, severity, reasons = policy.unseen, None, ["a part of the video could not be judged"]
    elif missing:
        reasons.append("a part of the video could not be judged")
    seen = sum(one.frame.end - one.frame.start for one in judged if not one.failed)
    end = max([duration, *(one.end for one in missing)])
    return Verdict(decision, severity, _sentence(decision, reasons), categories, frames, missing,
                   round(min(1.0, seen / end), 4) if end else 0.0, len(whole))  # fmt: skip


def _finding(policy: Policy, questions: Questions, judged: Judged) -> FrameFinding:
    """Return what was said of a frame. One that lacks answers can still violate by those that are there."""
    violations, said = [], []
    for category in policy.categories:
        hits = []
        for question, number in zip(category.questions, questions.of_category[category.id], strict=True):
            answer = judged.answers.get(number)
            hits.append(answer in question.violates)
            if answer is not None:
                said.append(Said(category=category.id, question=question.ask, answer=answer, violates=hits[-1]))
        if any(hits) if category.match == "any" else all(hits):
            violations.append(category.id)
    frame = judged.frame
    return FrameFinding(index=frame.index, time=_round(frame.time), start=_round(frame.start), end=_round(frame.end),
                        violations=violations, answers=said, description=judged.description or None)  # fmt: skip


def _category(
    category: Category, frames: Sequence[FrameFinding], whole: set[int], longest: float
) -> CategoryVerdict:
    runs = _runs(category.id, frames, whole)
    hits = [frame for run in runs for frame in run]
    figures: dict[str, float] = {
        "frames": len(hits),
        "consecutive": max(map(len, runs), default=0),
        "seconds": _round(sum(min(frame.end - frame.start, longest) for frame in hits)),
    }
    decision, reason = _weighed(category, figures)
    intervals = [
        Interval(start=run[0].start, end=run[-1].end, first=run[0].time, last=run[-1].time,
                 frames=[frame.index for frame in run])
        for run in runs
    ]  # fmt: skip
    return CategoryVerdict(
        id=category.id, title=category.title, severity=category.severity, decision=decision, reason=reason,
        frames=len(hits), consecutive=int(figures["consecutive"]), seconds=figures["seconds"], intervals=intervals,
    )  # fmt: skip


def _runs(category: str, frames: Sequence[FrameFinding], whole: set[int]) -> list[list[FrameFinding]]:
    """Return the frames that violate, those one after the other together. A frame that could not be judged neither
    ends a run nor counts."""
    runs: list[list[FrameFinding]] = []
    going_on = False
    for frame in frames:
        if category in frame.violations:
            if not going_on:
                runs.append([])
            runs[-1].append(frame)
            going_on = True
        elif frame.index in whole:
            going_on = False
    return runs


def _weighed(category: Category, figures: Mapping[str, float]) -> tuple[Decision, str]:
    if not figures["frames"]:
        return "allow", "not seen"
    said = f"in {_frames(figures['frames'])}, {_frames(figures['consecutive'])} in a row, {figures['seconds']:g} s"
    for decision, threshold in (("block", category.block), ("review", category.review)):
        if threshold is not None and all(figures[name] >= least for name, least in threshold.given.items()):
            return decision, f"{said}; {decision} from {_spelled(threshold)}"  # type: ignore[return-value]
    least = category.review or category.block
    return "allow", f"{said}; " + (f"less than {_spelled(least)}" if least else "the policy never acts on it")


def _spelled(threshold: Threshold) -> str:
    words = {"frames": "{}", "consecutive": "{} in a row", "seconds": "{} s"}
    return " and ".join(
        words[name].format(_frames(least) if name == "frames" else f"{least:g}")
        for name, least in threshold.given.items()
    )


def _frames(count: float) -> str:
    return f"{count:g} frame{'' if count == 1 else 's'}"


def _sentence(decision: Decision, reasons: Sequence[str]) -> str:
    words = {"allow": "Nothing stands against it", "review": "A person should look", "block": "Not to be shown"}
    return f"{words[decision]}{': ' if reasons else ''}{'; '.join(reasons)}."


def _joined(missing: list[NotSeen]) -> list[NotSeen]:
    """Join stretches that touch and miss for one reason."""
    result: list[NotSeen] = []
    for one in missing:
        if result and result[-1].reason == one.reason and one.start <= result[-1].end + 0.002:
            result[-1] = NotSeen(start=result[-1].start, end=max(one.end, result[-1].end), reason=one.reason)
        else:
            result.append(one)
    return result


def _round(seconds: float) -> float:
    return round(seconds, 3)
