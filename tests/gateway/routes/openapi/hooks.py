"""What Schemathesis is told besides the description: which failures are none, and what real media look like.

Loaded by Schemathesis in its own process. A schema cannot say everything; each refusal of a request that the schema
allows must be one of those listed here.
"""

import re

import schemathesis
from hypothesis import strategies as st

from tests.support.gateway import ROOT

REASONS = (
    r"is over the limit of|must be more than 0 and at most",  # a text such as "2h" past the server's limit
    r"is more than the \d+ tokens the answer may have",  # min_tokens beside max_tokens
    r"give max_tokens or max_completion_tokens, not both|give fps or frames, not both",
    r"give the system prompt in|a system message can only be the first",
    r"'stream_options': only with|'top_logprobs': only with|'required' needs 'tools'",
    r"there is no function|two functions are named|cannot honour 'response_format' together with 'tools'",
    r"tool_call_id: must be the id of a call|must be the text of a JSON object",
    r"logit_bias: there is no token",
    r"is half a surrogate pair|has no place for them|chat template",
    r"(JSON schema|regular expression|grammar|response_format|tools?).*(not valid|cannot|must|because)",
    r"must be a string or a list of parts",  # an assistant's message with neither content nor calls
    r"should be a valid integer",  # 1.0, which a JSON schema calls an integer
    r"is a GGUF file|it cannot take|needs audio|cannot honour",
    r"it cannot look at frames|cannot answer by a schema|there is no such policy|neither the name of a policy",
    r"policy.*(is none of the answers|comes twice|every answer would|needs frames|no describe|are more than|blanks)",
    r"a video must be MP4|not base64|could not|looks like|it is (a|an) |URLs are off|a data: address must|it is empty",
)


@schemathesis.hook
def filter_failure(context, failure, case, response):  # type: ignore[no-untyped-def]
    """Keep all failures but refusals for a reason that no schema can state, and deadlines of less than a moment."""
    kind = type(failure).__name__
    if kind == "RejectedPositiveData" and response.status_code == 400:
        return not any(re.search(reason, response.text) for reason in REASONS)
    if kind == "ServerError" and response.status_code == 504:
        return not _at_once(case.body)
    return True


def _at_once(body: object) -> bool:
    """Whether a request asked for an answer within two seconds."""
    said = body.get("timeout") if isinstance(body, dict) else None
    if isinstance(said, str):
        number = re.match(r"\s*(\d+(\.\d+)?)\s*(ms|s)?\s*$", said, re.IGNORECASE)
        said = float(number[1]) * (0.001 if (number[3] or "").lower() == "ms" else 1) if number else None
    return isinstance(said, int | float) and said < 2


SOUND = (ROOT / "examples" / "rising.wav").read_bytes()
schemathesis.openapi.format("binary", st.just(SOUND))
