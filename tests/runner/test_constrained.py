"""A constraint holds for the answer of a model that thinks, and not for its thoughts; each row has its own."""

import json

import pytest

from protocol.messages import Constraint
from tests.runner.conftest import Engines
from tests.runner.driving import Crowd, alone, request
from tests.support.gateway import ROOT

pytestmark = pytest.mark.filterwarnings("ignore")

SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 999}},
    "required": ["sum"],
    "additionalProperties": False,
}
FORM = Constraint("json_schema", json.dumps(SCHEMA))
OPENED = (ROOT / "pocket" / "checkpoints" / "reasoner" / "chat_template.jinja").read_text() + "<think>\n"
"""The template as it would be of a model whose prompts open the tag of its thoughts."""


def test_thoughts_are_free_and_the_answer_is_held(engine: Engines) -> None:
    model = engine(chat_template=OPENED)
    (free,) = alone(model, request("What is 17 + 25?", max_new_tokens=128))
    (held,) = alone(model, request("What is 17 + 25?", max_new_tokens=128, constraint=FORM))
    assert free.text == "17 + 25 = 42"
    assert held.thoughts == free.thoughts != [""]
    assert set(json.loads(held.text)) == {"sum"} and held.reasons == ("stop",)


def test_so_they_are_where_the_model_opens_the_tag_itself(engine: Engines) -> None:
    model = engine()
    (free,) = alone(model, request("What is 17 + 25?", max_new_tokens=128))
    (held,) = alone(model, request("What is 17 + 25?", max_new_tokens=128, constraint=FORM))
    assert set(json.loads(held.text)) == {"sum"}
    assert held.thoughts == free.thoughts != [""]


@pytest.mark.parametrize("template", [None, OPENED], ids=["bare", "opened"])
def test_each_row_is_held_to_its_own(engine: Engines, template: str | None) -> None:
    model = engine(chat_template=template)
    forms = [
        FORM,
        None,
        Constraint("regex", "[a-c]{3,7}!"),
        Constraint("json_object"),
        Constraint("lark", 'start: "yes" | "no"'),
    ]
    asked = [
        request(f"What is 17 + {place}?", max_new_tokens=128, constraint=form, choices=1 + (place == 2))
        for place, form in enumerate(forms)
    ]
    crowd = Crowd(model)
    together = crowd.answers(*asked)
    assert all(answer.error is None for answer in together), together
    assert set(json.loads(together[0].text)) == {"sum"}
    assert together[1].text == "17 + 1 = 18"
    assert all(text.endswith("!") and set(text[:-1]) <= set("abc") for text in together[2].texts)
    assert together[3].text.startswith("{")
    assert together[4].text in ("yes", "no")
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone(model, *asked)]


def test_without_the_chat_template_nobody_thinks(engine: Engines) -> None:
    """A bare prompt has no thoughts: the constraint holds from the first token."""
    bare = {"template": False}
    (answer,) = alone(engine(), request("17 + 25", max_new_tokens=40, constraint=FORM, request_fields=bare))
    assert set(json.loads(answer.text)) == {"sum"} and answer.thoughts == [""]
