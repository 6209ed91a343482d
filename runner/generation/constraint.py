"""Constrained answers: JSON, a JSON schema, a regular expression or a grammar, by llguidance. Runner process.

One ``Grammars`` per loaded model, one ``Mask`` per sequence; neither is thread-safe. Knows tokenizers, no engines.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from functools import partial
from queue import Queue
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from protocol.messages import Constraint
from runner.errors import RequestError, RunnerError
from runner.generation.tool_calls import SEPARATORS

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

KEPT = 32
"""Compiled grammars that a model keeps for later requests."""

LONGEST = 65_536
"""Most characters of a constraint. The library's compiler recurses into each part, so this bounds its stack; longer
constraints also take seconds.
"""

DEEP_STACK = 1 << 28
"""Bytes of address space for the compiler's stack: twice what the worst constraint found of that length needs."""

MOST_EXAMINED = 1_000_000
"""Most characters of schema compiled to find the part that is rejected, referenced parts included."""

# Keywords that hold subschemas: one, several by name, or a list.
ONE_SCHEMA = ("items", "additionalProperties", "not", "if", "then", "else", "contains")
NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
LISTED_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")

LIMITS = LLParserLimits(initial_lexer_fuel=100_000, verbose_errors=False)
"""The library's limits, with a tenth of its fuel for expressions before the first token: seconds in the worst case."""


class Mask:
    """The tokens that the grammar allows next in one answer."""

    def __init__(self, matcher: LLMatcher, tokenizer: LLTokenizer, ends: frozenset[int]) -> None:
        self._matcher = matcher
        self._ends = ends
        self._ended = False
        self._size = tokenizer.vocab_size
        self._packed = allocate_token_bitmask(1, self._size)
        # An end token that the model does not use would not end the answer.
        self._false_ends = [token for token in tokenizer.eos_tokens if ends and token not in ends]

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and no more tokens are allowed."""
        return self._ended or (self._matcher.is_stopped() and not self._matcher.is_error())

    def mask_scores(self, scores: NDArray[np.float32]) -> None:
        """Set the scores (V,) of tokens that are not allowed to -inf, in place.

        V may differ from the tokenizer's size, because models pad their vocabulary; padding is never allowed.

        :raises RequestError: if the grammar becomes too complex to continue.
        """
        common = min(self._size, scores.size)
        if self._ended:
            allowed = np.zeros(common, np.uint8)
        else:
            fill_next_token_bitmask(self._matcher, self._packed)
            self._check()
            allowed = np.unpackbits(self._packed.view(np.uint8)[0], count=common, bitorder="little")
        for token in self._false_ends:
            if token < common:
                allowed[token] = 0
        ends = {}
        if self._ended or self._matcher.is_accepting():
            ends = {token: scores[token] for token in self._ends if token < scores.size}
        scores[common:] = -np.inf
        np.copyto(scores[:common], -np.inf, where=allowed == 0)
        for token, score in ends.items():
            scores[token] = score

    def accept_token(self, token: int) -> None:
        """Advance by the sampled token.

        :raises RunnerError: if the token is not allowed.
        """
        if token in self._ends and (self._ended or self._matcher.is_accepting()):
            self._ended = True
        elif self._ended or not self._matcher.consume_token(token):
            raise RunnerError(f"token {token} came where the constraint does not allow it")

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"the answer cannot be held to its form further: {_short(self._matcher.get_error())}")


class Grammars:
    """Compiles constraints for one model.

    :param tokenizer: Makes the tokenizer for the first constraint; takes up to a second.
    :param ends: The ids that end an answer, allowed wherever the grammar may end.
    """

    def __init__(self, tokenizer: Callable[[], LLTokenizer], ends: Collection[int]) -> None:
        self._make = tokenizer
        self._tokenizer: LLTokenizer | None = None
        self.ends = frozenset(ends)
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()

    def compile_constraint(self, constraint: Constraint) -> Mask:
        """Return the mask for a new sequence.

        :raises RequestError: if the constraint is invalid or cannot be enforced. The message names the part.
        """
        if self._tokenizer is None:
            self._tokenizer = self._make()
        matcher = self._compiled.pop(constraint, None)
        if matcher is None:
            if len(constraint.value) > LONGEST:
                raise RequestError(f"what the answer must match is longer than {LONGEST:,} characters")
            matcher = _on_deep_stack(partial(_matcher, constraint, self._tokenizer))
        self._compiled[constraint] = matcher
        if len(self._compiled) > KEPT:
            self._compiled.popitem(last=False)
        return Mask(matcher.deep_copy(), self._tokenizer, self.ends)


def from_transformers(tokenizer: Any) -> LLTokenizer:
    """Return llguidance's view of a transformers tokenizer.

    :raises RequestError: if it is not a Rust tokenizer, or has no end token (the library would use another token).
    """
    from llguidance.hf import from_tokenizer

    if getattr(tokenizer, "eos_token_id", None) is None:
        raise RequestError("this model's answers cannot be constrained: its tokenizer has no token for the end")
    try:
        return from_tokenizer(tokenizer)
    except ValueError as error:
        raise RequestError(f"this model's answers cannot be constrained: {error}") from error


def _matcher(constraint: Constraint, tokenizer: LLTokenizer) -> LLMatcher:
    """Compile a constraint. :raises RequestError: if it cannot be compiled."""
    if constraint.kind == "json_object":
        grammar = _json_grammar({"type": "object"})
    elif constraint.kind == "json_schema":
        grammar = _json_grammar(_schema(constraint.value))
    elif constraint.kind == "regex":
        # The library puts the expression between slashes; a trailing backslash would escape the second.
        if (len(constraint.value) - len(constraint.value.rstrip("\\"))) % 2:
            raise RequestError("the regular expression is not valid: it ends in a lone backslash")
        grammar = LLMatcher.grammar_from_regex(constraint.value)
    else:
        grammar = LLMatcher.grammar_from_lark(constraint.value)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()  # errors such as endless recursion appear only here; the result is reused
    if not matcher.is_error():
        return matcher
    error = _short(matcher.get_error())
    if constraint.kind == "json_schema":
        pointer, error = _culprit(_schema(constraint.value), error)
        raise RequestError(f"the JSON schema cannot be enforced, because of {pointer}: {error}")
    if constraint.kind == "regex":
        raise RequestError(f"the regular expression is not valid: {error}")
    number = re.match(r"(?:at )?(\d+)\(", error)
    line = "".join(constraint.value.split("\n")[int(number[1]) - 1 : int(number[1])])[:60] if number else ""
    raise RequestError(f"the grammar is not valid: {error}" + f", in {line!r}" * bool(line))


def _json_grammar(schema: Any) -> str:
    """Return the grammar of a schema. Its own ``x-guidance`` overrides our separators."""
    try:
        return LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=cast("JsonCompileOptions", SEPARATORS))
    except ValueError as error:  # nested too deeply
        raise RequestError(f"the JSON schema cannot be enforced: {error}") from error


def _schema(text: str) -> Any:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the JSON schema is no JSON: {error}") from error
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise RequestError("the JSON schema must be a JSON object" + " that something matches" * (schema is False))
    return schema


def _culprit(schema: Any, error: str) -> tuple[str, str]:
    """Return the innermost part of a schema that is rejected by itself, as a JSON pointer, and the reason."""
    found, shared = "#", {}
    if isinstance(schema, dict):
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    examined = 0
    rest = _subschemas(schema, "#")
    while (part := next(rest, None)) is not None and examined < MOST_EXAMINED:
        pointer, subschema = part
        grammar = _json_grammar(shared | subschema)
        examined += len(grammar)
        refused, problems = LLMatcher.validate_grammar_with_warnings(grammar, limits=LIMITS)
        if refused:
            found, error, rest = pointer, _short(problems[0]), _subschemas(subschema, pointer)
    return found, error


def _subschemas(schema: Any, pointer: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the direct subschemas of a schema with their JSON pointers."""
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        within = f"{pointer}/{_escaped(key)}"
        if key in ONE_SCHEMA and isinstance(value, dict):
            yield within, value
        elif key in NAMED_SCHEMAS and isinstance(value, dict):
            yield from ((f"{within}/{_escaped(name)}", part) for name, part in value.items() if isinstance(part, dict))
        elif key in LISTED_SCHEMAS and isinstance(value, list):
            yield from ((f"{within}/{index}", part) for index, part in enumerate(value) if isinstance(part, dict))


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _short(error: str) -> str:
    """Return a library error without the source it repeats, at most 300 characters and an ellipsis."""
    if error.startswith("NoExtension"):
        return "nothing matches it"
    error = re.split(r"\n\s*\d+ \| |<backtrace>|<non-verbose/>", error)[0]
    line = " ".join(error.split())
    return line if len(line) <= 300 else line[:150] + " … " + line[-150:]


def _on_deep_stack(work: Callable[[], LLMatcher]) -> LLMatcher:
    """Run ``work`` in a thread with a large stack. Return its result or raise its error."""
    results: Queue[LLMatcher | Exception] = Queue()

    def compile_it() -> None:
        try:
            results.put(work())
        except Exception as error:
            results.put(error)

    before = threading.stack_size(DEEP_STACK)
    try:
        thread = threading.Thread(target=compile_it, name="grammar")
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    result = results.get()
    if isinstance(result, Exception):
        raise result
    return result
