"""The bytes that a compiled program moves between a chip's memory and its cores, from its text.

XLA's own analysis counts the body of a loop once. Here it counts as often as the loop runs. Plain
text in, a number out; nothing here needs JAX. Pallas kernels are counted elsewhere (`pallas`).
"""

import logging
import math
import re
from typing import NamedTuple

log = logging.getLogger("kzoo")

_BITS = {"pred": 8, "bf16": 16}  # of the others the name tells: f32, s8, f8e4m3
_SHAPE = re.compile(r"\b(pred|bf16|[fsuc]\d+)(\w*)\[([\d,]*)\](\{[^{}]*\})?")
_START = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = ")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
)
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "domain"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency"),
}
_BUFFERS = ("AllocateBuffer", "ConcatBitcast", "tpu_custom_call")  # they move nothing themselves


class Instruction(NamedTuple):
    """One line of a program: `%name = type op(operands), rest`; `root` ends its computation."""

    name: str
    type: str
    op: str
    operands: list
    rest: str
    root: bool

    def calls(self, kind):
        return [name for key, name in _CALLED.findall(self.rest) if key == kind]


def traffic(text: str) -> int:
    """The bytes that XLA's own operations read from a chip's memory and write to it.

    Every operand and result of an instruction counts once, in the tiles that hold it, so that an
    axis of 64 in tiles of 128 counts twice; what stays in the vector memory (`S(1)`) counts
    nothing. What is sliced counts as the slice, and a loop's body as often as the loop runs. Of
    branches the dearest counts.

    Args:
        text: of an optimised module, one chip's part of the program.

    Example:
        >>> traffic("ENTRY %f {\\n  %x = f32[8,128]{1,0:T(8,128)} parameter(0)\\n"
        ...     "  ROOT %y = f32[8,128]{1,0:T(8,128)} negate(%x)\\n}\\n")
        8192
    """
    computations, entry = _parse(text)
    return _Count(computations).of(entry)


def _parse(text):
    """The instructions of each computation by name, and the name of the first that runs."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.-]+) (?:\(.*)?\{$", line)
        if head and not line.startswith("HloModule"):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        start = _START.match(line)
        if start and current is not None:
            current.append(_instruction(line, start))
    return computations, entry


def _instruction(line, start):
    rest = line[start.end() :]
    size = _closing(rest) if rest.startswith("(") else rest.index(" ")
    kind, _, rest = rest[:size], None, rest[size:].strip()
    op, rest = rest.split("(", 1)
    end = _closing("(" + rest) - 1
    operands = re.findall(r"%([\w.-]+)", rest[:end])
    root = line.lstrip().startswith("ROOT")
    return Instruction(start[1], kind, op, operands or [rest[: end - 1]], rest[end:], root)


def _closing(text):
    """Where the parenthesis that `text` begins with has been closed."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i + 1
    return len(text)


def moved(type_):
    """The bytes of a type that lie in the chip's main memory, tiles filled up."""
    return sum(_held(*shape) for shape in _SHAPE.findall(type_))


def _held(dtype, rest, sizes, layout):
    if re.search(r"S\([1-9]", layout):
        return 0
    sizes = [int(size) for size in sizes.split(",") if size]
    order = re.match(r"\{([\d,]*)", layout or "{")[1]
    order = [int(axis) for axis in order.split(",") if axis]
    tile = re.search(r"T\(([\d,]+)\)", layout)
    if tile and len(order) == len(sizes):
        for axis, size in zip(order, reversed(tile[1].split(",")), strict=False):
            sizes[axis] += -sizes[axis] % int(size)
    bits = _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])
    return math.prod(sizes) * bits // 8


class _Count:
    """The bytes of computations, each counted once."""

    def __init__(self, computations):
        self.computations, self.known = computations, {}

    def of(self, name):
        if name not in self.known:
            lines = self.computations[name]
            types = {line.name: line.type for line in lines}
            self.known[name] = sum(self._line(line, types) for line in lines)
        return self.known[name]

    def _line(self, line, types):
        op = line.op
        if op in _FREE or op.endswith("-done") or op.endswith("-update"):
            return 0
        if op == "custom-call" and any(f'target="{name}"' in line.rest for name in _BUFFERS):
            return 0
        if op == "while":
            (body,), (condition,) = line.calls("body"), line.calls("condition")
            return self._trips(line, condition) * (self.of(body) + self.of(condition))
        if op == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", line.rest)
            names = re.findall(r"[\w.-]+", branches[1]) if branches else []
            names += line.calls("true_computation") + line.calls("false_computation")
            return max(self.of(name) for name in names)
        if op in ("call", "async-start"):
            return sum(self.of(name) for name in line.calls("to_apply") + line.calls("calls"))
        if op == "fusion":
            return self._fusion(line, types)
        if op in ("copy-start", "slice-start"):  # the type names source and target
            shapes = [moved(part) for part in _parts(line.type)[:2]]
            return sum(shapes) if op == "copy-start" else 2 * min(shapes) or _size(line.type)
        if op in ("dynamic-slice", "slice", "gather"):
            return 2 * moved(line.type)
        if op == "dynamic-update-slice":
            return 2 * moved(types.get(line.operands[1], ""))
        return moved(line.type) + sum(moved(types.get(name, "")) for name in line.operands)

    def _fusion(self, line, types):
        """Of an operand that is only sliced the slices count, of a result what is written."""
        (name,) = line.calls("calls")
        total = 0
        for index, operand in enumerate(line.operands):
            if moved(types.get(operand, "")):
                total += self._read(name, index)
        return total + sum(
            moved(_anywhere(written)) if moved(part) else 0
            for written, part in zip(self._written(name), _parts(line.type), strict=True)
        )

    def _read(self, name, index):
        """The bytes that a fusion reads of an operand."""
        lines = self.computations[name]
        (own,) = (x for x in lines if x.op == "parameter" and x.operands[0] == str(index))
        return self._used(own, lines)

    def _used(self, own, lines):
        total = 0
        for one in lines:
            for place, operand in enumerate(one.operands):
                if operand != own.name:
                    continue
                if one.op == "bitcast":
                    total += self._used(one, lines)
                elif one.op == "fusion":
                    total += self._read(*one.calls("calls"), place)
                elif place == 0 and one.op in ("dynamic-slice", "slice", "gather"):
                    total += moved(_anywhere(one.type))
                elif place or one.op != "dynamic-update-slice":
                    return moved(_anywhere(own.type))
        return min(total, moved(_anywhere(own.type)))

    def _written(self, name):
        """The types of what a fusion writes, one for each result."""
        lines = self.computations[name]
        inner = {one.name: one for one in lines}
        (root,) = (one for one in lines if one.root)
        names = root.operands if root.op == "tuple" else [root.name]
        return [self._update(inner[one], inner) for one in names]

    def _update(self, root, inner):
        while root.op == "bitcast" and root.operands[0] in inner:
            root = inner[root.operands[0]]
        if root.op == "dynamic-update-slice":
            return inner[root.operands[1]].type
        if root.op == "fusion" and not root.type.startswith("("):
            return self._written(*root.calls("calls"))[0]
        return root.type

    def _trips(self, line, condition):
        """How often a loop runs: XLA says it, or its condition compares a counter from 0 on."""
        known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', line.rest)
        if known:
            return int(known[1])
        lines = list(self.computations[condition])
        for one in tuple(lines):
            lines += [x for name in one.calls("calls") for x in self.computations[name]]
        bounds = [one.operands[0] for one in lines if one.op == "constant"]
        if (
            len(bounds) == 1
            and bounds[0].isdigit()
            and any("direction=LT" in x.rest for x in lines)
        ):
            return int(bounds[0])
        log.warning("how often the loop %s runs, its text does not say; it counts once", line.name)
        return 1


def _anywhere(type_):
    """A type without the name of the memory that holds it."""
    return re.sub(r"S\(\d+\)", "", type_)


def _size(type_):
    return max(moved(part) for part in _parts(type_))


def _parts(type_):
    """The parts of a tuple's type; of another type itself."""
    if not type_.startswith("("):
        return [type_]
    parts, depth = [""], 0
    for character in re.sub(r"/\*.*?\*/", "", type_[1:-1]):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
