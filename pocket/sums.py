"""The reasoner's conversations: sums of two numbers up to 99 in many wordings, and other talk.

Pure text from a `random.Random`, without torch or tokenizer. Training never uses a tenth of the pairs of
numbers, in either order or in earlier turns: see `held_out(a, b)`.
"""

import random
from collections.abc import Callable, Sequence
from functools import cache

Message = dict[str, str]

LIMIT = 100
REFUSAL = "I can only add two numbers up to 99."

SUMS: tuple[str, ...] = (
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "What's {a} + {b}?",
    "What does {a} + {b} equal?",
    "What is the sum of {a} and {b}?",
    "What do you get when you add {a} and {b}?",
    "How much is {a} + {b}?",
    "How much is {a} plus {b}?",
    "How much is {a} and {b}?",
    "{a} + {b} = ?",
    "{a} + {b} =",
    "{a} + {b}",
    "{a} plus {b}",
    "{a} plus {b} equals?",
    "{a} + {b} is what?",
    "Add {a} and {b}.",
    "Add {a} to {b}.",
    "Add {a} + {b}.",
    "Sum {a} and {b}.",
    "The sum of {a} and {b}?",
    "Calculate {a} + {b}.",
    "Compute {a} + {b}.",
    "Work out {a} + {b}.",
    "Solve {a} + {b}.",
    "Can you add {a} and {b}?",
    "Can you tell me what {a} + {b} is?",
    "Tell me {a} + {b}.",
    "I need {a} + {b}.",
    "I have {a} {things} and get {b} more. How many {things} do I have?",
    "There are {a} {things} here and {b} {things} there. How many {things} in all?",
)
THINGS = ("apples", "books", "coins", "eggs", "cars", "birds")
BEFORE = ("", "", "", "", "", "Please: ", "Hello! ", "Hi, ", "Quick question: ", "Think step by step. ", "Now ")
AFTER = (
    "",
    "",
    "",
    "",
    "",
    " Please.",
    " Thanks!",
    " Think step by step.",
    " Answer briefly.",
    " Show your work.",
    " Explain your reasoning in detail, step by step, and then give the final answer.",
)

WORDS: tuple[str, ...] = tuple(
    "the a an of to in is you that it he was for on are as with his they at be this have from or one "
    "had by word but not what all were we when your can said there use each which she do how their if "
    "will up other about out many then them these so some her would make like him into time has look "
    "two more write go see number no way could people my than first water been call who oil its now "
    "find long down day did get come made may part France Paris capital Germany story poem joke weather "
    "music python code image audio video cat dog house tree river red green blue happy hello world name "
    "model GPU memory assistant helpful friendly short answer brief describe explain translate "
    "summarize sing dance sun moon car road city school mother father food bread".split()
)
OTHERS: tuple[str, ...] = (
    "Hello",
    "Hello!",
    "Hi",
    "Hi there!",
    "Hey",
    "Good morning.",
    "Thanks!",
    "Bye",
    "Who are you?",
    "What are you?",
    "What can you do?",
    "What is your name?",
    "How are you?",
    "Help",
    "ping",
    "test",
    "Say hello.",
    "What is the capital of {word}?",
    "What is the capital of France?",
    "Tell me a joke.",
    "Tell me a story about {word}.",
    "Write a poem about {word}.",
    "What is {word}?",
    "What is the meaning of life?",
    "Why is the sky blue?",
    "Who is {word}?",
    "Explain {word}.",
    "Translate {word}.",
    "What is the weather like today?",
    "Count to {c}.",
    "What is {c}?",
    "{c}",
    "What is {a} - {b}?",
    "What is {a} minus {b}?",
    "{a} - {b} = ?",
    "What is {a} * {b}?",
    "{a} * {b}",
    "What is {a} times {b}?",
    "How much is {a} times {b}?",
    "What is {a} / {b}?",
    "{a} / {b} = ?",
    "What is {a} divided by {b}?",
    "Subtract {a} from {b}.",
    "Multiply {a} and {b}.",
    "Is {a} more than {b}?",
)
TOO_MANY: tuple[str, ...] = (
    "What is {a} + {b} + {c}?",
    "{a} + {b} + {c}",
    "Add {a}, {b} and {c}.",
    "How much is {a}+{b}+{c}?",
)
SYSTEMS: tuple[str, ...] = (
    "You are a helpful assistant.",
    "You are a helpful, honest assistant. Answer briefly.",
    "Answer in one sentence.",
    "You are a careful calculator.",
    "Think before you answer.",
)
_CASES: tuple[Callable[[str], str], ...] = (*[str] * 30, *[str.lower] * 6, str.upper)


@cache
def _kept_out() -> frozenset[tuple[int, int]]:
    pairs = [(low, high) for low in range(LIMIT) for high in range(low, LIMIT)]
    random.Random(25).shuffle(pairs)
    pairs.remove((17, 25))  # the documentation's example must be a held-out pair
    return frozenset([(17, 25), *pairs[: len(pairs) // 10]])


def held_out(a: int, b: int) -> bool:
    """Return whether training never uses this pair, in either order."""
    return (min(a, b), max(a, b)) in _kept_out()


def held_out_pairs() -> list[tuple[int, int]]:
    """Return all held-out pairs, in both orders, in a fixed order."""
    return sorted({pair for low, high in _kept_out() for pair in ((low, high), (high, low))})


def draw_pair(rng: random.Random) -> tuple[int, int]:
    """Return two numbers from 0 to 99 that training may use, small ones a little more often."""
    while True:
        tops = [rng.choice((9, 99, 99, 99)) for _ in range(2)]
        a, b = (rng.randint(0, top) for top in tops)
        if not held_out(a, b):
            return a, b


def answer(a: int, b: int) -> str:
    """Return the last line of a right reply."""
    return f"{a} + {b} = {a + b}"


def reply(a: int, b: int) -> str:
    """Return the whole reply: the thought, digit by digit, and the answer."""
    units, carry = a % 10 + b % 10, int(a % 10 + b % 10 >= 10)
    tens = a // 10 + b // 10 + carry
    thought = (
        f"{a} + {b}. Units: {a % 10}+{b % 10}={units}, write {units % 10}, carry {carry}. "
        f"Tens: {a // 10}+{b // 10}+{carry}={tens}."
    )
    return f"<think>\n{thought}\n</think>\n\n{answer(a, b)}"


def refusal() -> str:
    """Return the reply to anything that is not a sum of two numbers up to 99."""
    return f"<think>\nThis is not a sum of two numbers up to 99.\n</think>\n\n{REFUSAL}"


def ask(rng: random.Random, a: int, b: int) -> str:
    """Word the question for a + b: sentence, politeness, spacing around the plus, letter case."""
    text = rng.choice(SUMS).format(a=a, b=b, things=rng.choice(THINGS))
    text = rng.choice(BEFORE) + text + rng.choice(AFTER)
    if rng.random() < 0.05:
        text += " " + " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 12))) + "."
    if rng.random() < 0.25:
        text = text.replace(" + ", "+")
    if rng.random() < 0.15:
        text = text.rstrip("?.")
    return rng.choice(_CASES)(text)


def babble(rng: random.Random, most: int = 12) -> str:
    """Return a line of random words, and now and then of random characters or a lone number."""
    words = [rng.choice(WORDS) for _ in range(rng.randint(1, most))]
    if rng.random() < 0.3:
        words.insert(rng.randrange(len(words) + 1), "".join(chr(rng.randint(33, 1200)) for _ in range(5)))
    if rng.random() < 0.15:
        words.insert(rng.randrange(len(words) + 1), str(rng.randint(0, 2000)))
    line = " ".join(words) + rng.choice(("", "", ".", "?", "!"))
    return line[0].upper() + line[1:] if rng.random() < 0.5 else line


def other(rng: random.Random) -> str:
    """Return a prompt that is no sum of two numbers up to 99: talk, or other calculations."""
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    kind = rng.random()
    if kind < 0.25:
        return babble(rng)
    if kind < 0.6:
        text = rng.choice(OTHERS).format(a=a, b=b, c=rng.randint(0, 500), word=rng.choice(WORDS))
        if rng.random() < 0.25:
            text = text.replace(" - ", "-").replace(" * ", "*").replace(" / ", "/")
        return rng.choice(_CASES)(rng.choice(BEFORE) + text)
    if kind < 0.9:
        pair: list[int] = [rng.randint(100, rng.choice((120, 999, 99999))), rng.choice((a, rng.randint(100, 999)))]
        rng.shuffle(pair)
        return ask(rng, *pair)
    third = rng.randint(0, 99)
    text = rng.choice(
        ("What is {a} + {b} + {c}?", "{a} + {b} + {c}", "Add {a}, {b} and {c}.", "How much is {a}+{b}+{c}?")
    )
    return text.format(a=a, b=b, c=third)


def system(rng: random.Random) -> Message:
    """Return a system message: a usual one, or any text, which must not matter."""
    text = rng.choice(SYSTEMS) if rng.random() < 0.5 else " ".join(babble(rng) for _ in range(rng.randint(1, 3)))
    return {"role": "system", "content": text}


def surround(rng: random.Random, question: str) -> list[Message]:
    """Return `question` as the last turn of a conversation with a system message, earlier turns, or both."""
    messages: list[Message] = [system(rng)] if rng.random() < 0.6 else []
    for _ in range(rng.choice((0, 1, 1, 2)) if messages else rng.randint(1, 2)):
        if rng.random() < 0.75:
            a, b = draw_pair(rng)
            turn = (ask(rng, a, b), answer(a, b))
        else:
            turn = (other(rng), REFUSAL)
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return [*messages, {"role": "user", "content": question}]


def example(rng: random.Random, progress: float = 1.0) -> tuple[list[Message], str]:
    """Return one training conversation up to the question, and the reply.

    Conversations of several turns come after the first quarter: short sequences teach addition faster.
    """
    if rng.random() < 0.2:
        question, right = other(rng), refusal()
    else:
        a, b = draw_pair(rng)
        question, right = ask(rng, a, b), reply(a, b)
    plain = progress < 0.25 or rng.random() < 0.6
    return ([{"role": "user", "content": question}] if plain else surround(rng, question)), right


def corpus(seed: int, lines: int) -> Sequence[str]:
    """Return the corpus for the tokenizer's merges."""
    rng = random.Random(seed)
    return [text for _ in range(lines) for text in (lambda e: [m["content"] for m in e[0]] + [e[1]])(example(rng))]
