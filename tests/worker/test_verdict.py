"""Tests verdicts on invented answers: runs, thresholds and unseen parts."""

from typing import Any

import pytest

from moderation.asking import Questions
from moderation.frame_source import Frame, Unseen
from moderation.policy_file import check_policy
from moderation.verdict import Judged, Verdict, decide_verdict


def shown(index: int, time: float, start: float, end: float, stretches: int = 1) -> Frame:
    """Return a frame without its pictures."""
    return Frame(index, time, start, end, 0, 0, b"", b"", stretches)


def verdict(
    answers: str,
    *,
    spacing: float = 1.0,
    unseen: tuple[Unseen, ...] = (),
    policy: dict[str, Any] | None = None,
    fps: float = 1.0,
    stretches: int = 1,
    most: int | None = None,
    **category: Any,
) -> Verdict:
    """Return the verdict on frames given as letters: ``x`` violates, ``.`` does not, ``?`` was not judged."""
    red = {"id": "red", "title": "Red", "questions": [{"ask": "Is it red?"}], **category}
    own = check_policy({"name": "own", "version": "1", "categories": [red], **(policy or {})})
    judged = []
    for index, letter in enumerate(answers):
        frame = shown(index, (index + 0.5) * spacing, index * spacing, (index + 1) * spacing, stretches)
        said = {"x": {0: "yes"}, ".": {0: "no"}, "?": {}}[letter]
        judged.append(Judged(frame, said, failed="malformed" if letter == "?" else ""))
    return decide_verdict(own, Questions(own), judged, unseen, fps, len(answers) * spacing, most)


def test_frames_in_a_row_are_an_interval() -> None:
    (category,) = verdict("..xxx..x.").categories
    found = [(one.start, one.end, one.first, one.last, one.frames) for one in category.intervals]
    assert found == [(2, 5, 2.5, 4.5, [2, 3, 4]), (7, 8, 7.5, 7.5, [7])]
    assert (category.frames, category.consecutive, category.seconds) == (4, 3, 4)


@pytest.mark.parametrize(
    ("answers", "thresholds", "decision"),
    [
        ("....", {}, "allow"),
        ("..x.", {}, "review"),
        ("..x.", {"review": {"frames": 2}}, "allow"),
        ("x.x.", {"block": {"frames": 2}}, "block"),
        ("x.x.", {"block": {"consecutive": 2}}, "review"),
        ("xx..", {"block": {"consecutive": 2, "frames": 3}}, "review"),
        ("xx.x", {"block": {"consecutive": 2, "frames": 3}}, "block"),
        ("xxx.", {"block": {"seconds": 3}}, "block"),
        ("xx..", {"block": {"seconds": "3s"}}, "review"),
        ("xxxx", {"review": "never"}, "allow"),
        ("xxxx", {"review": "never", "block": {"frames": 4}}, "block"),
    ],
)
def test_thresholds(answers: str, thresholds: dict[str, Any], decision: str) -> None:
    found = verdict(answers, **thresholds)
    assert found.decision == found.categories[0].decision == decision, found.summary


def test_few_frames_of_a_long_video_are_no_minutes() -> None:
    found = verdict("xx..", spacing=144, block={"seconds": 60})
    assert found.decision == "review" and found.categories[0].seconds == 2
    assert found.categories[0].intervals[0].end == 288


def test_a_frame_that_could_not_be_judged_neither_ends_a_run_nor_counts() -> None:
    found = verdict("x?x.", block={"consecutive": 2})
    assert found.decision == "block" and found.categories[0].frames == 2
    assert [(one.start, one.end, one.reason) for one in found.not_seen] == [(1, 2, "malformed")]
    assert found.coverage == 0.75 and found.judged == 3


def test_a_stretch_without_frames_ends_a_run() -> None:
    """Two frames with minutes of damage between them are not in a row; a gap beside them does not separate them."""
    policy = check_policy(
        {
            "name": "own",
            "version": "1",
            "categories": [{"id": "red", "title": "Red", "questions": [{"ask": "?"}], "block": {"consecutive": 2}}],
        }
    )
    judged = [Judged(shown(0, 0.5, 0, 1), {0: "yes"}), Judged(shown(1, 600.5, 600, 601), {0: "yes"})]
    gap, beside = Unseen(1, 600, "it is damaged there"), Unseen(0, 601, "a track that was not looked at")
    found = decide_verdict(policy, Questions(policy), judged, (gap,), 1.0, 601.0)
    assert found.decision == "review" and found.categories[0].consecutive == 1
    assert len(found.categories[0].intervals) == 2
    assert decide_verdict(policy, Questions(policy), judged, (beside,), 1.0, 601.0).decision == "block"


def test_a_still_picture_counts_as_long_as_it_is_shown() -> None:
    """One frame may stand for twenty stretches."""
    for threshold in ({"frames": 20}, {"consecutive": 20}, {"seconds": 20}):
        found = verdict("x", spacing=20, stretches=20, block=threshold)
        assert found.decision == "block" and found.frames[0].stretches == 20, threshold
    assert verdict("x", spacing=20, stretches=20, block={"seconds": 21}).decision == "review"


def test_a_threshold_that_is_met_exactly() -> None:
    """Three thirds of a second are a second, despite rounding."""
    assert verdict("xxx.", spacing=1 / 3, fps=3, block={"seconds": 1}).decision == "block"
    assert verdict("x" * 30, spacing=1 / 30, fps=30, block={"seconds": 1}).decision == "block"
    assert verdict("x" * 29, spacing=1 / 30, fps=30, block={"seconds": 1}).decision == "review"


def test_a_threshold_that_so_few_frames_cannot_reach() -> None:
    """Ten frames of two hours: if all violate, a threshold of a minute is reached. Short videos get no such help."""
    found = verdict("x" * 10, spacing=720, most=10, block={"seconds": 60})
    assert found.decision == "block" and "or all of the 10 frames looked at" in found.summary
    assert verdict("x" * 9 + ".", spacing=720, most=10, block={"seconds": 60}).decision == "review"
    assert verdict("x???", spacing=720, most=10, block={"seconds": 60}).decision == "review"
    assert verdict("x" * 10, most=10, block={"seconds": 60}).decision == "review"


@pytest.mark.parametrize(("unseen", "decision"), [("allow", "review"), ("review", "review"), ("block", "block")])
def test_nothing_judged_at_all_is_never_allowed(unseen: str, decision: str) -> None:
    found = verdict("???", policy={"unseen": unseen})
    assert found.decision == decision and found.judged == 0 and "nothing of the video" in found.summary


def test_what_was_not_seen_is_for_a_person() -> None:
    tail = (Unseen(4, 10, "the file ends early"),)
    assert verdict("....", unseen=tail).decision == "review"
    assert verdict("....", unseen=tail, policy={"unseen": "allow"}).decision == "allow"
    assert verdict("....", unseen=tail, policy={"unseen": "block"}).decision == "block"
    found = verdict("..?.", unseen=tail)
    assert "could not be judged" in found.summary and found.coverage == 0.3


def test_the_gravest_category_decides() -> None:
    two = [
        {"id": name, "title": name, "severity": severity, "questions": [{"ask": f"{name}?"}], "block": block}
        for name, severity, block in (("a", "low", {"frames": 1}), ("b", "critical", None))
    ]
    policy = check_policy({"name": "own", "version": "1", "categories": two})
    judged = [Judged(shown(0, 0.5, 0, 1), {0: "yes", 1: "yes"})]
    found = decide_verdict(policy, Questions(policy), judged, (), 1.0, 1.0)
    assert (found.decision, found.severity) == ("block", "low") and "a: " in found.summary


def test_all_questions_or_any() -> None:
    for match, answers, hit in (
        ("all", {0: "yes", 1: "no"}, False),
        ("all", {0: "yes", 1: "yes"}, True),
        ("any", {0: "no", 1: "yes"}, True),
        ("all", {0: "yes"}, False),
    ):
        policy = check_policy(
            {
                "name": "own",
                "version": "1",
                "categories": [{"id": "a", "title": "A", "match": match, "questions": [{"ask": "1?"}, {"ask": "2?"}]}],
            }
        )
        found = decide_verdict(policy, Questions(policy), [Judged(shown(0, 0.5, 0, 1), dict(answers))], (), 1.0, 1.0)
        assert bool(found.frames[0].violations) == hit
