"""Tests the policies in ``policies/``, and error messages with line and field."""

from pathlib import Path

import pytest

from moderation.policy import Policy
from moderation.policy_file import PolicyError, check_policy, find_policy, load_policy, parse_policy
from tests.support.gateway import ROOT

FOLDER = ROOT / "policies"
GOOD = """\
name: own
version: "1"
categories:
  - id: weapons
    title: Weapons
    questions:
      - ask: Is there a weapon?
"""


def test_those_that_come_along_are_good() -> None:
    for path in FOLDER.glob("*.yaml"):
        policy = load_policy(path)
        assert policy.name == path.stem and find_policy(path.stem, FOLDER) == policy


def test_yes_and_no_are_texts() -> None:
    policy = parse_policy(GOOD + "        answers: [yes, no, on]\n        violates: [yes, on]\n")
    question = policy.categories[0].questions[0]
    assert question.answers == ("yes", "no", "on") and question.violates == ("yes", "on")


def test_what_is_not_said() -> None:
    (category,) = parse_policy(GOOD).categories
    assert category.questions[0].answers == ("yes", "no") and category.severity == "medium"
    assert category.review is not None and category.review.given == {"frames": 1} and category.block is None
    never = parse_policy(GOOD + "    review: never\n    block: {seconds: 1m}\n").categories[0]
    assert never.review is None and never.block is not None and never.block.given == {"seconds": 60}


def test_the_digest_is_of_what_it_says() -> None:
    policy = parse_policy(GOOD)
    assert parse_policy("# a comment\n" + GOOD.replace('"1"', "'1'")).digest == policy.digest
    assert parse_policy(GOOD.replace("a weapon", "a gun")).digest != policy.digest
    assert check_policy(policy.model_dump(mode="json")).digest == policy.digest


@pytest.mark.parametrize(
    ("change", "to", "line", "words"),
    [
        ("title: Weapons", "title: Weapons\n    severity: awful", 6, "[0].severity: must be one of 'low', 'medium'"),
        ('version: "1"', "version: 1", 2, "version: must be a text; put it in quotes"),
        ("name: own", "name: My Policy", 1, "name: must be small letters, digits"),
        ("      - ask: Is there a weapon?", "      - aks: x", 7, "categories[0].questions[0].ask: is needed"),
        (
            "      - ask: Is",
            "      - violates: [perhaps]\n        ask: Is",
            7,
            "'perhaps' is none of the answers yes, no",
        ),
        ("      - ask: Is", "      - violates: [no, yes]\n        ask: Is", 7, "every answer would be a violation"),
        ("title: Weapons", "title: Weapons\n    block: {}", 6, "needs frames, consecutive or seconds"),
        ("title: Weapons", "title: Weapons\n    block: {frames: 0}", 6, "categories[0].block.frames: "),
        ("name: own", "name: own\nname: own", 2, "name: comes twice"),
        ("name: own", "name: own\nask: each\ndescribe: true", 1, "no describe and no frames_per_request"),
        (
            "categories:",
            "categories:\n  - {id: weapons, title: Again, questions: [{ask: A}]}",
            1,
            "'weapons' comes twice",
        ),
        ("categories:", "categories: [\n", 5, "is not YAML"),
        (
            "name: own",
            "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
            "c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\n"
            "e: [*d, *d, *d, *d, *d, *d, *d, *d, *d]\nname: own",
            None,
            "has more than 20000 values",
        ),
    ],
)
def test_a_mistake_is_told_by_line_and_field(change: str, to: str, line: int | None, words: str) -> None:
    assert change in GOOD
    with pytest.raises(PolicyError) as found:
        parse_policy(GOOD.replace(change, to), "own.yaml")
    assert str(found.value).startswith("own.yaml: ") and words in str(found.value), found.value
    if line is not None:
        assert line in [problem.line for problem in found.value.problems], found.value


def test_many_mistakes_are_told_at_once() -> None:
    with pytest.raises(PolicyError) as found:
        parse_policy("name: own\ncategories: []\nfoo: 1\n")
    assert [str(problem) for problem in found.value.problems] == [
        "line 1: version: is needed",
        "line 2: categories: needs 1 or more",
        "line 3: foo: no such field",
    ]


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for name, words in (("empty", "must be a mapping"), ("bytes", "no text in UTF-8"), ("none", "are bytes, empty")):
        with pytest.raises(PolicyError, match=words):
            find_policy(name, tmp_path)
    with pytest.raises(PolicyError, match="cannot be read: No such file"):
        load_policy(tmp_path / "none.yaml")
    for name in ("../policies/default", "/etc/passwd", "default.yaml"):
        with pytest.raises(PolicyError, match="there is no such policy"):
            find_policy(name, FOLDER, only_names=True)


def test_the_page_s_policy_and_its_mistake() -> None:
    page = (ROOT / "docs" / "moderation.md").read_text()
    text = page.partition("```yaml\n")[2].partition("```")[0]
    assert parse_policy(text).categories[0].questions[1].violates == ("combat knife",)
    with pytest.raises(PolicyError) as found:
        parse_policy(text.replace("severity: high", "severity: awful"), "policies/office.yaml")
    assert str(found.value) in page


def test_it_is_a_value() -> None:
    assert isinstance(hash(parse_policy(GOOD)), int) and parse_policy(GOOD) == Policy.model_validate(
        {
            "name": "own",
            "version": "1",
            "categories": [{"id": "weapons", "title": "Weapons", "questions": [{"ask": "Is there a weapon?"}]}],
        }
    )
