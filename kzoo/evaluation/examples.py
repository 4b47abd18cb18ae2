"""What is evaluated: questions with their answers, or with choices of which one is right."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kzoo.errors import InputError, unknown
from kzoo.files import parse_json
from kzoo.values import is_integer, shown

FIELDS = ("question", "choices", "answer")
MOST_LABELS = 100


class Example(NamedTuple):
    """A question and its possible answers.

    Attributes:
        question: a string.
        choices: tuple of strings, all different; the answer alone where there are no others.
        gold: the index of the right one.
    """

    question: str
    choices: tuple[str, ...]
    gold: int = 0

    @property
    def answer(self) -> str:
        return self.choices[self.gold]


def examples(given: Any) -> list[Example]:
    """Examples in any form in which they are given, checked.

    Args:
        given: a list of `Example`; of `{"question": str, "choices": [str, ...], "answer": index}`
            (the answer may also be the text of a choice); or of (question, answer) pairs.

    Returns:
        A list of `Example`.

    Raises:
        InputError: for anything else, fewer than two choices or two that are equal, or an answer
            that is none of them.

    Example:
        >>> examples([{"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}])[0].answer
        '4'
    """
    if not isinstance(given, list | tuple):
        raise InputError(f"examples are a list. Received: {shown(given)}")
    if not given:
        raise InputError("there is at least one example. Received: none")
    return [_example(one, f"example {i}") for i, one in enumerate(given)]


def read(path: str | Path) -> list[Example]:
    """Questions with choices from a file.

    Args:
        path: of a file of JSON lines, an object for each question as `examples` takes it, or of
            one JSON list of them.

    Returns:
        A list of `Example`.

    Raises:
        InputError: no such file, no JSON, or what `examples` refuses; with the line.

    Example:
        >>> question = '{"question": "2 + 2 =", "choices": ["3", "4"], "answer": "4"}'
        >>> _ = Path("questions.jsonl").write_text(question)
        >>> read("questions.jsonl")
        [Example(question='2 + 2 =', choices=('3', '4'), gold=1)]
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"there is no file of that name. Received: {str(path)!r}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"a file of questions is UTF-8. Received: {str(path)!r}, invalid at byte {error.start}"
        ) from None
    if text.lstrip().startswith("["):
        items = [("item", i, item) for i, item in enumerate(_json(text, str(path)))]
    else:
        lines = enumerate(text.split("\n"), 1)
        items = [("line", i, _json(line, f"{path}, line {i}")) for i, line in lines if line.strip()]
    found = [_example(item, f"{str(path)!r}, {kind} {i}") for kind, i, item in items]
    if not found:
        raise InputError(f"there is no question in it. Received: {str(path)!r}")
    return found


def holds_choices(path: str | Path) -> bool:
    """Whether a file is one of questions with choices: its first object has `"choices"`."""
    path = Path(path).expanduser()
    if not path.is_file() or path.suffix not in (".json", ".jsonl", ".ndjson"):
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        beginning = file.read(1 << 16).lstrip()
    first = beginning.partition("}")[0]
    return '"choices"' in first


def labelled(given: list[Example]) -> list[Example]:
    """Examples with all labels that occur among their answers as the choices of each.

    Raises:
        InputError: for one label only, or more than 100, which are no labels.

    Example:
        >>> labelled(examples([("good film", "pos"), ("bad film", "neg")]))[0].choices
        ('neg', 'pos')
    """
    if any(len(example.choices) > 1 for example in given):
        return given
    labels = tuple(sorted({example.answer for example in given}))
    if not 2 <= len(labels) <= MOST_LABELS:
        raise InputError(
            f"answers that are ranked are labels, from 2 to {MOST_LABELS} different ones; or each "
            f"question has choices of its own. Received: {len(labels)} different answers"
        )
    return [Example(one.question, labels, labels.index(one.answer)) for one in given]


def _example(given, where):
    if isinstance(given, Example):
        return given
    if isinstance(given, Mapping):
        return _of_mapping(given, where)
    texts = isinstance(given, list | tuple) and len(given) == 2
    if texts and all(isinstance(text, str) for text in given):
        if not given[1]:
            raise InputError(f"an answer is not empty. Received: '' ({where})")
        return Example(given[0], (given[1],))
    raise InputError(
        "an example is a (question, answer) pair of strings, or has the fields "
        f"{', '.join(FIELDS)}. Received: {shown(given)} ({where})"
    )


def _of_mapping(given, where):
    for field in FIELDS:
        if field not in given:
            raise InputError(
                f"an example has the fields {', '.join(FIELDS)}; {field} is missing. "
                f"Received: {', '.join(map(str, given)) or 'none'} ({where})"
            )
    question, choices, answer = (given[field] for field in FIELDS)
    if not isinstance(question, str):
        raise InputError(f"a question is a string. Received: {shown(question)} ({where})")
    listed = isinstance(choices, list | tuple) and len(choices) > 1
    if not listed or not all(isinstance(choice, str) and choice for choice in choices):
        raise InputError(
            "choices are a list of two strings or more, none of them empty. "
            f"Received: {shown(choices)} ({where})"
        )
    if len(set(choices)) < len(choices):
        raise InputError(f"choices are all different. Received: {shown(choices)} ({where})")
    if isinstance(answer, str):
        if answer not in choices:
            raise unknown(
                f"answer ({where}); it is one of the choices or its index", answer, choices
            )
        answer = choices.index(answer)
    if not is_integer(answer) or not 0 <= answer < len(choices):
        raise InputError(
            f"answer is the index of a choice, from 0 to {len(choices) - 1}, or its text. "
            f"Received: {shown(answer)} ({where})"
        )
    return Example(question, tuple(choices), int(answer))


def _json(text, where):
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(
            f"each line is one JSON object, or the file one list of them ({error}). "
            f"Received: {where}"
        ) from None
