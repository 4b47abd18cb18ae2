"""README and guides as programs: their code blocks, and a process that runs them in order.

A block is run unless an HTML comment directly before it says why not: `<!-- not run: why -->`.
A block is written to the file that such a comment names: `<!-- file: my_study.json -->`.
All documents run in one folder, each with names of its own. `python tests/guides.py DOCUMENT ...`
does so, in the folder that it is started in.
"""

import contextlib
import dataclasses
import io
import random
import re
import shlex
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GUIDES = ROOT / "examples" / "guides"
DOCUMENTS = [ROOT / "README.md", *sorted(GUIDES.glob("*.md"))]
PROGRAMS = ("python", "sh", "json")

# What would take long in the blocks, regular expressions, and what is run in its place.
CUT = {
    r"(?<=[a-z0-9])_(tiny|small|base|large|1b)\b": "_nano",
    r'(presets\.load\("\w+_nano")': r"\1, num_layers=1",
    r'(\("\w+_nano", \{)': r'\1"num_layers": 1, ',
    r"\bepochs=\d+": "epochs=1",
    r"\bsteps=\d+": "steps=4",
    r'"steps": \d+': '"steps": 4',
    r"--steps \d+": "--steps 4",
    r"\[:\d{3,}\]": "[:4]",
    r'"seeds": \[0, 1, 2, 3, 4, 5\]': '"seeds": [0, 1, 2, 3, 4]',
    r'("cosine"}}},\s+)"tuning": .*}': r'\1"learning_rate": 0.01',
    r"\bseeds=\d+": "seeds=1",
    r"\bmax_length=\d+": "max_length=20",
    r"--max-length \d+": "--max-length 20",
}
WORDS = (
    "Call me Ishmael. Some years ago never mind how long precisely having little or no money in my "
    "purse and nothing particular to interest me on shore I thought I would sail about a little "
    "and see the watery part of the world."
).split()


def book():
    """A text without repetitions, of 15 kB."""
    draw = random.Random(0)
    return "\n\n".join(" ".join(draw.choices(WORDS, k=50)) for _ in range(60))


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block of a document.

    Attributes:
        document: `Path` of the file; line: of its fence.
        language: the word after the fence, or "".
        text: what stands in it.
        comment: (kind, words) of the HTML comment directly before it, or None.
    """

    document: Path
    line: int
    language: str
    text: str
    comment: tuple | None

    def __str__(self):
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self):
        return self.language in PROGRAMS and (self.comment or ("",))[0] != "not run"


def blocks(document):
    """The code blocks of a document, a list of `Block`."""
    found, comment = [], None
    lines = iter(enumerate(document.read_text(encoding="utf-8").splitlines(), start=1))
    for number, line in lines:
        if line.startswith("```"):
            body = []
            for _, inner in lines:
                if inner.startswith("```"):
                    break
                body.append(inner + "\n")
            found.append(Block(document, number, line[3:].strip(), "".join(body), comment))
        match = re.fullmatch(r"<!-- ([a-z ]+): (.+) -->", line)
        comment = (match[1], match[2]) if match else None
    return found


def commands(block):
    """The commands of a block of shell: a list of lists of words."""
    whole = block.text.replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in whole.splitlines()]
    return [line for line in lines if line]


def cut(text):
    for long, short in CUT.items():
        text = re.sub(long, short, text)
    return text


def run(block, namespace):
    """Run one block; an exception says what is wrong with it."""
    text = cut(block.text)
    if block.comment and block.comment[0] == "file":
        Path(block.comment[1]).write_text(text, encoding="utf-8")
    elif block.language == "python":
        exec(compile(text, str(block), "exec"), namespace)
    else:
        from kzoo.cli import main

        for program, *arguments in commands(dataclasses.replace(block, text=text)):
            assert program == "kzoo", f"{block}: {program} runs in no test; mark the block"
            status = main(arguments)
            assert status in (None, 0), f"{block}: kzoo {shlex.join(arguments)} exits with {status}"


def _set_up():
    """What the documents take as given: a text, and studies that run in this process."""
    from kzoo.studies import workers

    Path("my_book.txt").write_text(book(), encoding="utf-8")
    workers.processes = lambda: 1


def main(documents):
    sys.path.insert(0, str(ROOT))
    _set_up()
    for document in documents:
        namespace = {"__name__": "guide"}
        for block in blocks(Path(document)):
            if not block.runs:
                continue
            said, begun = io.StringIO(), time.process_time()
            try:
                with contextlib.redirect_stdout(said):
                    run(block, namespace)
            except BaseException:
                print(f"{said.getvalue()}\n{block} fails", file=sys.stderr)
                raise
            print(f"{block}: {time.process_time() - begun:.1f} s", flush=True)
        _forget()


def _forget():
    """What one document has set for all of Keras does not reach the next."""
    import keras

    keras.distribution.set_distribution(None)
    keras.config.set_dtype_policy("float32")


if __name__ == "__main__":
    import conftest  # noqa: F401  its environment: JAX, and programs that are compiled quickly

    main(sys.argv[1:])
