"""Tokens to text: whole characters, no stop strings, thinking told from answering, however it is cut in pieces."""

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

from protocol.messages import Delta, Done, Generate, RunnerMessage, Sampling, Started
from runner.generation.detokenizer import REPLACEMENT, Detokenizer, StopStrings, ThinkSplitter
from runner.generation.job import Job

LIGHT = settings(max_examples=150, deadline=None, database=None)
characters = st.characters(exclude_categories=["Cs"], exclude_characters=REPLACEMENT)


def chunks(text: str, cuts: list[int]) -> list[str]:
    """Cut a text at these places."""
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[start:end] for start, end in zip(places, places[1:], strict=False)] or [text]


cuts = st.lists(st.integers(0, 1000), max_size=12)


# -- characters --------------------------------------------------------------------------------------------------------


def from_bytes(ids: list[int]) -> str:
    """A tokenizer whose tokens are single bytes: the worst case of byte-level BPE."""
    return bytes(ids).decode("utf-8", errors="replace")


@LIGHT
@given(text=st.text(characters, max_size=120))
def test_bytes_come_out_as_whole_characters(text: str) -> None:
    detokenizer, shown = Detokenizer(from_bytes), ""
    for byte in text.encode():
        piece = detokenizer.push_token(byte)
        assert REPLACEMENT not in piece, "half a character"
        shown += piece
        assert text.startswith(shown)
    assert shown == text and detokenizer.flush() == ""


@LIGHT
@given(text=st.text(characters, min_size=1, max_size=40), sizes=st.lists(st.integers(1, 7), min_size=1))
def test_tokens_of_several_bytes_too(text: str, sizes: list[int]) -> None:
    data, vocabulary, place = text.encode(), [], 0
    while place < len(data):
        vocabulary.append(data[place : place + sizes[len(vocabulary) % len(sizes)]])
        place += len(vocabulary[-1])

    def decode(ids: list[int]) -> str:
        return b"".join(vocabulary[token] for token in ids).decode("utf-8", errors="replace")

    detokenizer, shown = Detokenizer(decode), ""
    for token in range(len(vocabulary)):
        piece = detokenizer.push_token(token)
        assert REPLACEMENT not in piece
        shown += piece
    assert shown + detokenizer.flush() == text


WORDS = ["▁the", "▁cat", "s", "▁", ",", "\n", "▁\n", "▁ok\n", "▁▁", "ful"]


def sentence_pieces(ids: list[int]) -> str:
    """A tokenizer whose decoding drops the first space of whatever it is given."""
    return "".join(WORDS[token] for token in ids).replace("▁", " ").removeprefix(" ")


@LIGHT
@given(ids=st.lists(st.integers(0, len(WORDS) - 1), max_size=200))
def test_spaces_survive_a_tokenizer_that_drops_the_first_one(ids: list[int]) -> None:
    detokenizer = Detokenizer(sentence_pieces)
    shown = "".join(detokenizer.push_token(token) for token in ids) + detokenizer.flush()
    assert shown == sentence_pieces(ids)


def test_decoding_costs_the_same_for_the_thousandth_token() -> None:
    lengths = []

    def decode(ids: list[int]) -> str:
        lengths.append(len(ids))
        return from_bytes(ids)

    detokenizer = Detokenizer(decode)
    for byte in b"word " * 400:
        detokenizer.push_token(byte)
    assert max(lengths) < 200


def test_half_a_character_at_the_end_is_held_back() -> None:
    detokenizer = Detokenizer(from_bytes)
    assert [detokenizer.push_token(byte) for byte in "a€".encode()[:-1]] == ["a", "", ""]
    assert detokenizer.flush().strip(REPLACEMENT) == ""


# -- stop strings ------------------------------------------------------------------------------------------------------


def stopped(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    filtered = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += filtered.push_text(piece)
        if filtered.stopped:
            assert filtered.push_text("more") == "" and filtered.flush() == ""
            return shown, True
    return shown + filtered.flush(), False


short = st.text("abc\n", min_size=1, max_size=4)


@LIGHT
@given(text=st.text("abc\n", max_size=40), stops=st.lists(short, min_size=1, max_size=3, unique=True), cuts=cuts)
def test_text_ends_at_the_earliest_stop_string(text: str, stops: list[str], cuts: list[int]) -> None:
    assume(not any(one != other and one in other for one in stops for other in stops))  # which is first depends
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    expected = text[: min(found)] if found else text
    assert stopped(tuple(stops), chunks(text, cuts)) == (expected, bool(found))
    assert stopped(tuple(stops), list(text)) == (expected, bool(found))


@LIGHT
@given(text=st.text("abc", max_size=40), stops=st.lists(short, max_size=3), cuts=cuts)
def test_nothing_shown_is_ever_part_of_a_stop_string(text: str, stops: list[str], cuts: list[int]) -> None:
    shown, _ = stopped(tuple(stops), chunks(text, cuts))
    assert text.startswith(shown) and not any(stop in shown for stop in stops)


def test_what_cannot_become_a_stop_string_is_shown_at_once() -> None:
    filtered = StopStrings(("STOP",))
    assert [filtered.push_text(piece) for piece in ("hello S", "T", "a", "STO", "P!")] == ["hello ", "", "STa", "", ""]
    assert filtered.stopped


def test_without_stop_strings_text_passes() -> None:
    assert stopped((), ["a", "", "b"]) == ("ab", False)
    assert stopped(("",), ["a", "b"]) == ("ab", False)


# -- thinking ----------------------------------------------------------------------------------------------------------


def split(pieces: list[str], inside: bool) -> tuple[str, str]:
    splitter = ThinkSplitter(inside)
    found = [part for piece in pieces for part in splitter.push_text(piece)] + splitter.flush()
    assert all(text for text, _ in found), "an empty piece"
    return "".join(t for t, thought in found if thought), "".join(t for t, thought in found if not thought)


tagged = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "<th", "think>", "</", " ", "\n", "a", "1 < 2", "<think", "</think"]),
    max_size=10,
).map("".join)


@settings(max_examples=400, deadline=None, database=None)
@given(text=tagged, inside=st.booleans(), cuts=cuts)
def test_any_cutting_gives_the_same_thinking_and_answer(text: str, inside: bool, cuts: list[int]) -> None:
    whole = split([text], inside)
    assert split(chunks(text, cuts), inside) == whole
    assert split(list(text), inside) == whole


@settings(max_examples=200, deadline=None, database=None)
@given(text=tagged, inside=st.booleans())
def test_nothing_is_lost_but_one_pair_of_tags(text: str, inside: bool) -> None:
    thought, said = split([text], inside)
    rest = text
    if not inside and text.lstrip().startswith("<think>"):
        rest = rest.replace("<think>", "", 1)
        inside = True
    if inside:
        expected, tag, after = rest.partition("</think>")
        lead = text[: len(text) - len(text.lstrip())] if rest != text else ""
        assert (thought, said) == (expected.removeprefix(lead), lead + after)
    else:
        assert (thought, said) == ("", text)


@pytest.mark.parametrize(
    ("text", "inside", "expected"),
    [
        ("<think>hm</think>4", False, ("hm", "4")),
        ("hm</think>4", True, ("hm", "4")),
        ("4", False, ("", "4")),
        ("\n<think>hm</think>\n4", False, ("hm", "\n\n4")),
        ("hm", True, ("hm", "")),
        ("<think>hm", False, ("hm", "")),
        ("say <think> aloud</think>", False, ("", "say <think> aloud</think>")),
        ("<think>a</think>b<think>c</think>", False, ("a", "b<think>c</think>")),
        ("", True, ("", "")),
        ("<think></think>4", False, ("", "4")),
        ("<thin", False, ("", "<thin")),
        ("a</thin", True, ("a</thin", "")),
        ("<think>a<think>b</think>c", False, ("a<think>b", "c")),
        ("4</think>", False, ("", "4</think>")),
    ],
)
def test_thinking_is_told_from_the_answer(text: str, inside: bool, expected: tuple[str, str]) -> None:
    assert split([text], inside) == split(list(text), inside) == expected


def test_an_answer_is_not_held_back() -> None:
    splitter = ThinkSplitter()
    assert splitter.push_text("1") == [("1", False)]
    assert splitter.push_text(" <") == [(" <", False)], "a tag cannot begin here any more"


# -- the whole way -----------------------------------------------------------------------------------------------------


def run(
    text: str,
    *,
    stop: tuple[str, ...] = (),
    thinks: bool = False,
    inside: bool = False,
    cancel_after: int = -1,
    decode: Callable[[list[int]], str] = from_bytes,
) -> list[RunnerMessage]:
    """Make a text byte by byte as an engine would."""
    sent: list[RunnerMessage] = []
    job = Job(Generate("r1", (), Sampling(999, stop=stop)), sent.append)
    (choice,) = job.begin_choices(7, decode, thinks, inside)
    for count, byte in enumerate(text.encode()):
        if count == cancel_after:
            job.cancel_job()
        if not choice.append_token(byte):
            break
    choice.finish_choice("length")
    return sent


def texts(sent: list[RunnerMessage]) -> tuple[str, str]:
    deltas = [message for message in sent if isinstance(message, Delta)]
    assert all(delta.text and delta.index == 0 for delta in deltas)
    return "".join(d.text for d in deltas if d.reasoning), "".join(d.text for d in deltas if not d.reasoning)


def test_a_job_begins_with_the_prompt_and_ends_once() -> None:
    sent = run("Grüße, 世界 🙂")
    assert sent[0] == Started("r1", 7)
    assert texts(sent) == ("", "Grüße, 世界 🙂")
    assert sent[-1] == Done("r1", ("length",), 7, len("Grüße, 世界 🙂".encode()), {})
    assert sum(isinstance(message, Done) for message in sent) == 1


def test_a_stop_string_ends_it_and_is_not_shown() -> None:
    sent = run("one END two", stop=("END",))
    assert texts(sent)[1].rstrip() == "one"
    assert sent[-1] == Done("r1", ("stop",), 7, len("one END"), {})


def test_half_a_stop_string_at_the_end_is_text() -> None:
    assert texts(run("one EN", stop=("END",))) == ("", "one EN")


def test_a_cancelled_job_makes_no_further_token() -> None:
    sent = run("0123456789", cancel_after=4)
    assert texts(sent)[1] == "01234"
    assert sent[-1] == Done("r1", ("cancelled",), 7, 5, {})


@LIGHT
@given(thought=st.text("ab \n", max_size=12), said=st.text("ab \n", max_size=12), inside=st.booleans())
def test_thinking_and_answer_come_without_white_space_around_them(thought: str, said: str, inside: bool) -> None:
    opening = "" if inside else "<think>"
    sent = run(f"{opening}{thought}</think>{said}", thinks=True, inside=inside)
    assert texts(sent) == (thought.strip(), said.strip())


def test_tags_are_text_for_a_model_that_does_not_think() -> None:
    assert texts(run("<think>a</think>b")) == ("", "<think>a</think>b")


def test_a_second_end_is_no_news() -> None:
    sent: list[RunnerMessage] = []
    job = Job(Generate("r1", (), Sampling(9)), sent.append)
    (choice,) = job.begin_choices(7, from_bytes)
    choice.finish_choice("stop")
    choice.finish_choice("length")
    job.send_done_if_complete()
    assert sent == [Started("r1", 7), Done("r1", ("stop",), 7, 0, {})]


def test_choices_each_have_their_text_and_end_together() -> None:
    sent: list[RunnerMessage] = []
    job = Job(Generate("r1", (), Sampling(9, stop=("!",)), choices=3), sent.append)
    choices = job.begin_choices(7, from_bytes)
    for bytes_of_each in zip(b"one!", b"two ", strict=True):
        for choice, byte in zip(choices, bytes_of_each, strict=False):
            choice.append_token(byte)
    choices[1].finish_choice("length")
    choices[0].finish_choice("length")
    assert not job.over and not any(isinstance(message, Done) for message in sent)
    choices[2].finish_choice("stop")
    said = ["".join(one.text for one in sent if isinstance(one, Delta) and one.index == index) for index in range(3)]
    assert said == ["one", "two", ""]
    assert job.over and sent[-1] == Done("r1", ("stop", "length", "stop"), 7, 8, {})


def test_the_end_waits_for_what_follows_the_text() -> None:
    sent: list[RunnerMessage] = []
    job = Job(Generate("r1", (), Sampling(9)), sent.append)
    (choice,) = job.begin_choices(7, from_bytes)
    job.hold_end()
    choice.finish_choice("stop")
    assert not job.over
    job.extras["audio"] = "…"
    job.release_end()
    assert job.over and sent[-1] == Done("r1", ("stop",), 7, 0, {"audio": "…"})


def test_every_token_is_counted_in_some_piece() -> None:
    """Tokens whose text is held back count with the piece that shows it, or with the last."""
    sent = run("one EN", stop=("END",))
    assert sum(one.tokens for one in sent if isinstance(one, Delta)) == len("one EN")
