"""Answers held to a form, over the vocabularies of the small models: one of llama.cpp, one of transformers."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from llguidance import LLTokenizer

from gateway.routes import response_format
from protocol.messages import Constraint, Sampling
from runner.engines.gguf import Gguf
from runner.errors import RequestError, RunnerError
from runner.generation.constraint import LONGEST, Grammars, Mask, from_transformers
from runner.generation.sampler import Sampler
from runner.generation.tool_calls import for_tools
from tests.support.gateway import CHECKPOINT, SMOLLM2

ANY_OBJECT = Constraint("json_object")
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"city": {"enum": ["Paris", "Rome"]}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


class Model:
    """A vocabulary with what a test asks of it."""

    def __init__(self, make: Callable[[], LLTokenizer], ends: set[int]) -> None:
        self.tokenizer = make()
        self.size = self.tokenizer.vocab_size
        self.ends = frozenset(ends)
        self.grammars = Grammars(lambda: self.tokenizer, ends)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.tokenize_str(text)

    def allowed(self, mask: Mask, size: int | None = None) -> set[int]:
        scores = np.zeros(size or self.size, np.float32)
        mask.mask_scores(scores)
        assert set(scores.tolist()) <= {0.0, -np.inf}
        return set(np.flatnonzero(scores == 0).tolist())

    def follow(self, constraint: Constraint, text: str) -> tuple[str, Mask]:
        """Return what of a text is allowed, and the mask after that."""
        mask, done = self.grammars.compile_constraint(constraint), []
        for token in self.ids(text):
            if mask.finished or token not in self.allowed(mask):
                break
            mask.accept_token(token)
            done.append(token)
        return self.tokenizer.decode_str(done), mask

    def takes(self, constraint: Constraint, text: str) -> bool:
        """Whether the text is allowed and may end there."""
        done, mask = self.follow(constraint, text)
        return done == text and self.ends <= self.allowed(mask)


@pytest.fixture(scope="module")
def smollm() -> Iterator[Model]:
    yield Model(Gguf(SMOLLM2, None, lambda _: None).grammar_tokenizer, {0, 2})


@pytest.fixture(scope="module")
def reasoner() -> Model:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    return Model(lambda: from_transformers(tokenizer), {tokenizer.eos_token_id})


@pytest.fixture(params=["smollm", "reasoner"])
def model(request: pytest.FixtureRequest) -> Model:
    return request.getfixturevalue(request.param)


# -- what is allowed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "constraint, good, bad",
    [
        (ANY_OBJECT, ["{}", '{"a": [1, {"b": null}], "c": "d e"}'], ["[1]", '{"a":  1}', '{"a"\n', '{"a": 1}}', "x"]),
        (
            Constraint("json_schema", json.dumps(PERSON)),
            ['{"name": "Ada", "age": 36}'],
            ['{"age": 36}', '{"name": "Ada", "age": 151}', '{"name": "Augustina", "age": 1}', '{"name": "Ada"}'],
        ),
        (Constraint("json_schema", "true"), ["1", "[]", '"a"'], ["nul", "{"]),
        (Constraint("regex", "[0-9]{3}(-[0-9]+)?"), ["123", "123-4567"], ["12", "123-", "a"]),
        (Constraint("regex", "^a/b$"), ["a/b"], ["^a/b$"]),
        (Constraint("lark", 'start: ("yes" | "no") "."'), ["yes.", "no."], ["maybe.", "yes"]),
    ],
)
def test_the_form_is_kept(model: Model, constraint: Constraint, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert model.takes(constraint, text), text
    for text in bad:
        assert not model.takes(constraint, text), text


def test_whatever_is_drawn_matches(model: Model) -> None:
    """Without a model's help: tokens drawn from noise still make what was asked for."""
    for seed in range(4):
        for constraint in (Constraint("json_schema", json.dumps(PERSON)), Constraint("regex", "[a-f]{2,9}[0-9]")):
            mask = model.grammars.compile_constraint(constraint)
            asked = Sampling(max_new_tokens=100, temperature=1.0, seed=seed, constraint=constraint)
            sampler, tokens = Sampler(asked, [], model.ends, constraint=mask), list[int]()
            noise = np.random.default_rng(seed)
            while not sampler.finished:
                tokens.append(sampler.sample_token(noise.standard_normal(model.size + 64).astype(np.float32)))
            text = model.tokenizer.decode_str([token for token in tokens if token not in model.ends])
            if constraint.kind == "regex":
                assert re.fullmatch(constraint.value, text)
            else:
                person = json.loads(text)
                assert set(person) == {"name", "age"} and 0 <= person["age"] <= 150 and len(person["name"]) <= 8


def test_it_is_finished_when_nothing_may_follow(model: Model) -> None:
    _, mask = model.follow(Constraint("regex", "ab?"), "a")
    assert not mask.finished
    assert model.allowed(mask) >= model.ends
    _, mask = model.follow(Constraint("regex", "ab?"), "ab")
    assert mask.finished


def test_every_end_ends_it_and_none_before_its_time(smollm: Model) -> None:
    for end in smollm.ends:
        text, mask = smollm.follow(Constraint("regex", "a+"), "")
        assert not smollm.allowed(mask) & smollm.ends
        _, mask = smollm.follow(Constraint("regex", "a+"), "aa")
        assert smollm.allowed(mask) >= smollm.ends
        mask.accept_token(end)
        assert mask.finished and smollm.allowed(mask) == smollm.ends


def test_an_end_that_is_only_the_tokenizers_is_none(smollm: Model) -> None:
    assert 4 in smollm.tokenizer.eos_tokens
    _, mask = smollm.follow(Constraint("regex", "a+"), "aa")
    assert 4 not in smollm.allowed(mask)


@pytest.mark.parametrize("more", [-1000, 0, 1, 1000])
def test_a_models_vocabulary_may_be_larger_or_smaller_than_the_tokenizers(smollm: Model, more: int) -> None:
    mask = smollm.grammars.compile_constraint(Constraint("regex", "(?s:.*)"))
    size = smollm.size + more
    allowed = smollm.allowed(mask, size)
    assert max(allowed) < smollm.size and len(allowed) > min(size, smollm.size) - 300


def test_two_answers_to_the_same_form_go_their_own_ways(smollm: Model) -> None:
    first, mask = smollm.follow(ANY_OBJECT, '{"a"')
    assert smollm.takes(ANY_OBJECT, "{}")
    assert first == '{"a"' and not mask.finished and smollm.ids(":")[0] in smollm.allowed(mask)


def test_a_token_against_the_form_is_an_error(smollm: Model) -> None:
    mask = smollm.grammars.compile_constraint(ANY_OBJECT)
    with pytest.raises(RunnerError, match="does not allow"):
        mask.accept_token(smollm.ids("x")[0])


def test_the_tokenizer_is_made_once_and_only_when_needed(smollm: Model) -> None:
    made = list[int]()

    def make() -> LLTokenizer:
        made.append(1)
        return smollm.tokenizer

    grammars = Grammars(make, smollm.ends)
    assert not made
    grammars.compile_constraint(ANY_OBJECT)
    grammars.compile_constraint(Constraint("regex", "a"))
    assert made == [1]


def test_a_tokenizer_that_cannot_be_used_is_the_requests_error() -> None:
    transformers = pytest.importorskip("transformers")
    pieces = transformers.AutoTokenizer.from_pretrained(CHECKPOINT.parent / "blip-vqa-base")
    with pytest.raises(RequestError, match="cannot be constrained: its tokenizer has no token for the end"):
        from_transformers(pieces)
    pieces.eos_token = pieces.sep_token
    with pytest.raises(RequestError, match="cannot be constrained: .*WordPiece"):
        from_transformers(pieces)


# -- what is refused ---------------------------------------------------------------------------------------------------


def nested(*keys: str, inner: Any) -> str:
    for key in reversed(keys):
        inner = {key: inner}
    return json.dumps(inner)


@pytest.mark.parametrize(
    "kind, value, message",
    [
        ("json_schema", "{", "the JSON schema is no JSON"),
        ("json_schema", "[" * 60_000, "the JSON schema is no JSON"),
        ("json_schema", "[]", "must be a JSON object"),
        ("json_schema", "false", "must be a JSON object that something matches"),
        ("json_schema", '{"type": "text"}', "because of #: Invalid type: text"),
        (
            "json_schema",
            nested("properties", "a/b", "items", inner={"type": "strin"}),
            r"because of #/properties/a~1b/items: Invalid type: strin",
        ),
        (
            "json_schema",
            nested("anyOf", inner=[{"type": "string"}, {"type": "string", "pattern": "(?=a)"}]),
            "because of #/anyOf/1: .*look-around",
        ),
        ("json_schema", '{"$defs": {"a": {"not": {}}}, "$ref": "#/$defs/a"}', r"because of #/\$defs/a: .*\"not\""),
        ("json_schema", '{"$ref": "#/nowhere"}', "/nowhere"),
        ("json_schema", '{"$ref": "#"}', "nothing matches it"),
        ("json_schema", '{"type": "array", "minItems": 2, "maxItems": 1}', "minItems"),
        ("json_schema", nested(*["properties", "a"] * 100, inner={}), "recursion limit"),
        ("regex", "[0-9", "the regular expression is not valid: .*unclosed character class"),
        ("regex", "a\\", "ends in a lone backslash"),
        ("regex", "(?=a)b", "look-ahead"),
        ("regex", "(" * 9000, "the regular expression is not valid"),
        ("regex", "a?" * 500, "the regular expression is not valid"),
        ("lark", "", "the grammar is not valid: Empty grammar"),
        ("lark", 'start: "a"\n  | word', 'the grammar is not valid: .*unknown name: "word"'),
        ("lark", 'start: start "a"', "nothing matches it"),
        ("lark", "start: " + "(" * 9000, "too deeply nested"),
        ("regex", "a" * (LONGEST + 1), "longer than 65,536 characters"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_the_reason(smollm: Model, kind: Any, value: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        smollm.grammars.compile_constraint(Constraint(kind, value))
    assert len(str(caught.value)) < 1000


def chain(length: int) -> str:
    """A grammar of rules each of which is made of the next."""
    return "start: a0\n" + "".join(f"a{n}:a{n + 1}\n" for n in range(length)) + f'a{length}: "x"'


def test_no_grammar_overflows_the_stack(smollm: Model) -> None:
    """A few thousand rules within rules overflow a usual stack, and that ends the process."""
    assert smollm.takes(Constraint("lark", chain(4500)), "x")
    links = {f"d{n}": {"items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(1200)} | {"d1200": {"type": "null"}}
    schema = json.dumps({"$ref": "#/$defs/d0", "$defs": links})
    assert len(schema) < LONGEST
    assert smollm.takes(Constraint("json_schema", schema), "[[[]]]")


# -- tools -------------------------------------------------------------------------------------------------------------

PARIS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


def test_required_means_one_call_or_more(model: Model) -> None:
    forced = for_tools([WEATHER, CLOCK], "required")
    for text in (PARIS, TIME, f"{TIME}\n{PARIS}\n{TIME}"):
        assert model.takes(forced, text), text
    for text in (
        "",
        "Hello",
        PARIS.replace("Paris", "Oslo"),
        PARIS.replace("weather", "wether"),
        f"{PARIS}\nHello",
        TIME.replace("{}", '{"zone": 1}'),
        "\n".join([TIME] * 17),
    ):
        assert not model.takes(forced, text), text


def test_a_functions_name_means_one_call_of_it(model: Model) -> None:
    forced = for_tools([WEATHER, CLOCK], "clock")
    text, mask = model.follow(forced, TIME)
    assert text == TIME and mask.finished
    assert not model.takes(forced, PARIS)


def test_names_are_text_whatever_is_in_them(smollm: Model) -> None:
    name = 'Grüße "von" a\\b/c\n1'
    tool = {"type": "function", "function": {"name": name}}
    call = f'<tool_call>\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {{}}}}\n</tool_call>'
    assert smollm.takes(for_tools([tool], "required"), call)


def test_a_strict_schema_is_enforced_or_refused_and_another_as_far_as_possible(smollm: Model) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "integer", "not": {"const": 1}}}, "required": ["a"]}
    loose = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    assert smollm.takes(for_tools([loose], "f"), TIME.replace("clock", "f").replace("{}", '{"a": 2}'))
    strict = {"type": "function", "function": {"name": "Get_It", "parameters": parameters, "strict": True}}
    with pytest.raises(RequestError, match='"not".*, in .*get_it'):
        smollm.grammars.compile_constraint(for_tools([CLOCK, strict], "required"))


def test_a_tag_that_is_one_token_may_be_used() -> None:
    """Where ``<tool_call>`` is a token of its own, a grammar that asks for the text must allow that token."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(["<end>"])
    raw.add_tokens(["<tool_call>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")
    model = Model(lambda: from_transformers(fast), {fast.eos_token_id})
    tag = fast.convert_tokens_to_ids("<tool_call>")
    assert tag in model.allowed(model.grammars.compile_constraint(for_tools([CLOCK], "clock")))


def test_the_gateway_knows_how_long_one_may_be() -> None:
    assert response_format.LONGEST == LONGEST
