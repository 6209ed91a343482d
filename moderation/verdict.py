"""Decides from the answers about frames: which violate, for how long, and whether a threshold is reached.

Pure functions. Must not know how frames are decoded or questions asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from moderation.asking import Questions
from moderation.frame_source import Frame, Unseen
from moderation.policy import DECISIONS, SEVERITIES, Category, Decision, Policy, Severity, Threshold
from moderation.result import CategoryVerdict, FrameFinding, Interval, NotSeen, Said

_NEAR = 1e-6


@dataclass
class Judged:
    """One frame's answers by question number, and why some are missing. The frame's pictures are not looked at."""

    frame: Frame
    answers: dict[int, str] = field(default_factory=dict)
    description: str = ""
    failed: str = ""


@dataclass(frozen=True)
class Verdict:
    """The decision and its grounds."""

    decision: Decision
    severity: Severity | None
    summary: str
    categories: list[CategoryVerdict]
    frames: list[FrameFinding]
    not_seen: list[NotSeen]
    coverage: float
    judged: int


def decide_verdict(
    policy: Policy,
    questions: Questions,
    judged: Sequence[Judged],
    unseen: Sequence[Unseen],
    fps: float,
    duration: float,
    max_frames: int | None = None,
) -> Verdict:
    """Return the verdict on a video from its frames in order and its stretches without frames.

    If no frame was judged, the decision is at least review, whatever the policy says.

    :param fps: the wanted rate: each of a frame's stretches counts for at most ``1 / fps`` seconds.
    :param max_frames: the wanted maximum. If the video has more frames at ``fps``, a threshold that this many frames
        cannot reach is reached when all of them violate.
    """
    frames = [_finding(policy, questions, one) for one in judged]
    whole = {one.frame.index for one in judged if not one.failed}
    looked = [_Looked(one.frame, finding) for one, finding in zip(judged, frames, strict=True)]
    most = _most(looked, fps, duration, max_frames)
    categories = [_category(category, looked, whole, unseen, fps, most) for category in policy.categories]
    missing = [NotSeen(start=_round(one.start), end=_round(one.end), reason=one.reason) for one in unseen]
    missing += [
        NotSeen(start=_round(one.frame.start), end=_round(one.frame.end), reason=one.failed)
        for one in judged
        if one.failed
    ]
    missing = _joined(sorted(missing, key=lambda one: (one.start, one.end)))
    decision: Decision = max((one.decision for one in categories), key=DECISIONS.index)
    guilty = [one for one in categories if one.decision == decision and decision != "allow"]
    severity: Severity | None = max((one.severity for one in guilty), key=SEVERITIES.index, default=None)
    reasons = [f"{one.title}: {one.reason}" for one in guilty]
    said = "a part of the video could not be judged" if whole else "nothing of the video could be judged"
    least: Decision = "allow"
    if not whole:
        least = max(policy.unseen, "review", key=DECISIONS.index)
    elif missing:
        least = policy.unseen
    if DECISIONS.index(least) > DECISIONS.index(decision):
        decision, severity, reasons = least, None, [said]
    elif missing or not whole:
        reasons.append(said)
    seen = sum(one.frame.end - one.frame.start for one in judged if not one.failed)
    end = max([duration, *(one.end for one in missing)])
    return Verdict(
        decision,
        severity,
        _sentence(decision, reasons),
        categories,
        frames,
        missing,
        round(min(1.0, seen / end), 4) if end else 0.0,
        len(whole),
    )


@dataclass(frozen=True)
class _Looked:
    """A frame and its finding. ``frame`` has exact times, the finding rounded ones."""

    frame: Frame
    finding: FrameFinding


def _most(looked: Sequence[_Looked], fps: float, duration: float, max_frames: int | None) -> int | None:
    """Return the largest possible number of frames if ``max_frames`` cut it, else None."""
    if max_frames is None or duration * fps < max_frames + 1:
        return None
    # Decoding in one pass drops every second frame. Frames that failed do not lower the threshold.
    return max(1, max_frames // 2, min(max_frames, sum(one.frame.stretches for one in looked)))


def violates(category: Category, answers: Mapping[int, str], numbers: Sequence[int]) -> bool:
    """Return whether a frame violates the category. A frame with missing answers can still violate."""
    hits = [
        answers.get(number) in question.violates for question, number in zip(category.questions, numbers, strict=True)
    ]
    return any(hits) if category.match == "any" else all(hits)


def _finding(policy: Policy, questions: Questions, judged: Judged) -> FrameFinding:
    """Return the finding of one frame."""
    violations, said = [], []
    for category in policy.categories:
        numbers = questions.of_category[category.id]
        for question, number in zip(category.questions, numbers, strict=True):
            answer = judged.answers.get(number)
            if answer is not None:
                said.append(
                    Said(
                        category=category.id, question=question.ask, answer=answer, violates=answer in question.violates
                    )
                )
        if violates(category, judged.answers, numbers):
            violations.append(category.id)
    frame = judged.frame
    return FrameFinding(
        index=frame.index,
        time=_round(frame.time),
        start=_round(frame.start),
        end=_round(frame.end),
        stretches=frame.stretches,
        violations=violations,
        answers=said,
        description=judged.description or None,
    )


def _category(
    category: Category,
    looked: Sequence[_Looked],
    whole: set[int],
    unseen: Sequence[Unseen],
    fps: float,
    most: int | None,
) -> CategoryVerdict:
    runs = _runs(category.id, looked, whole, unseen)
    hits = [one.frame for run in runs for one in run]
    figures: dict[str, float] = {
        "frames": sum(frame.stretches for frame in hits),
        "consecutive": max((sum(one.frame.stretches for one in run) for run in runs), default=0),
        "seconds": sum(min(frame.end - frame.start, frame.stretches / fps) for frame in hits),
    }
    limits = {} if most is None else {"frames": most, "consecutive": most, "seconds": most / fps}
    decision, reason = _apply_thresholds(category, figures, limits)
    intervals = [
        Interval(
            start=run[0].finding.start,
            end=run[-1].finding.end,
            first=run[0].finding.time,
            last=run[-1].finding.time,
            frames=[one.frame.index for one in run],
        )
        for run in runs
    ]
    return CategoryVerdict(
        id=category.id,
        title=category.title,
        severity=category.severity,
        decision=decision,
        reason=reason,
        frames=int(figures["frames"]),
        consecutive=int(figures["consecutive"]),
        seconds=_round(figures["seconds"]),
        intervals=intervals,
    )


def _runs(category: str, looked: Sequence[_Looked], whole: set[int], unseen: Sequence[Unseen]) -> list[list[_Looked]]:
    """Return runs of consecutive frames that violate. A frame that could not be judged neither counts nor ends a run.
    A stretch without frames ends it: its content is unknown."""
    runs: list[list[_Looked]] = []
    going_on, before = False, 0.0
    for one in looked:
        if any(gap.start >= before - _NEAR and gap.end <= one.frame.start + _NEAR for gap in unseen):
            going_on = False
        before = one.frame.end
        if category in one.finding.violations:
            if not going_on:
                runs.append([])
            runs[-1].append(one)
            going_on = True
        elif one.frame.index in whole:
            going_on = False
    return runs


def _apply_thresholds(
    category: Category, figures: Mapping[str, float], limits: Mapping[str, float]
) -> tuple[Decision, str]:
    """Return the decision and its reason. ``limits`` caps thresholds that the frames cannot reach."""
    if not figures["frames"]:
        return "allow", "not seen"
    said = f"in {_frames(figures['frames'])}, {_frames(figures['consecutive'])} in a row, {figures['seconds']:.6g} s"
    decisions: tuple[tuple[Decision, Threshold | None], ...] = (("block", category.block), ("review", category.review))
    for decision, threshold in decisions:
        if threshold is not None and all(
            figures[name] >= min(least, limits.get(name, least)) - _NEAR for name, least in threshold.given.items()
        ):
            return decision, f"{said}; {decision} from {_spelled(threshold, limits)}"
    least = category.review or category.block
    return "allow", f"{said}; " + (f"less than {_spelled(least, limits)}" if least else "the policy never acts on it")


def _spelled(threshold: Threshold, limits: Mapping[str, float]) -> str:
    words = {"frames": "{}", "consecutive": "{} in a row", "seconds": "{} s"}
    said = " and ".join(
        words[name].format(_frames(least) if name == "frames" else f"{least:g}")
        for name, least in threshold.given.items()
    )
    if any(least > limits.get(name, least) for name, least in threshold.given.items()):
        said += f", or all of the {_frames(limits['frames'])} looked at, which come to less"
    return said


def _frames(count: float) -> str:
    return f"{count:g} frame{'' if count == 1 else 's'}"


def _sentence(decision: Decision, reasons: Sequence[str]) -> str:
    words = {"allow": "Nothing stands against it", "review": "A person should look", "block": "Not to be shown"}
    return f"{words[decision]}{': ' if reasons else ''}{'; '.join(reasons)}."


def _joined(missing: list[NotSeen]) -> list[NotSeen]:
    """Join stretches that touch and have the same reason."""
    result: list[NotSeen] = []
    for one in missing:
        if result and result[-1].reason == one.reason and one.start <= result[-1].end + 0.002:
            result[-1] = NotSeen(start=result[-1].start, end=max(one.end, result[-1].end), reason=one.reason)
        else:
            result.append(one)
    return result


def _round(seconds: float) -> float:
    return round(seconds, 3)
