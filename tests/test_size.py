"""Every file and function fits on a few screens."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("kzoo", "tests", "examples")
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 600, 60


def code_lines(function):
    """Lines of a function without its docstring."""
    first, lines = function.body[0], function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_files_and_functions_are_short():
    long = {}
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        text, name = path.read_text(), str(path.relative_to(ROOT))
        if len(text.splitlines()) > LINES_OF_A_FILE:
            long[name] = len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = code_lines(node)
                if lines > LINES_OF_A_FUNCTION:
                    long[f"{name}: {node.name}"] = lines
    assert not long
