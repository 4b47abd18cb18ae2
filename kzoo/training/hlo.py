"""What the text of a compiled program says: which chips talk to each other, and which kernels run.

XLA prints an instruction as `%name = type operation(operands), attributes`. Plain text in, plain
Python out; nothing here needs JAX.
"""

import math
import re

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16}  # of the others the name tells: f32, s8, f8e4m3
_SHAPE = re.compile(r"\b(pred|bf16|[fsuc]\d+)\w*\[([\d,]*)\]")
_KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_COLLECTIVE = re.compile(rf"= (?P<type>\S.*?) (?P<kind>{'|'.join(_KINDS)})(?P<start>-start)?\(")
_SCATTER = re.compile(r"^%?all-reduce-scatter[\w.-]* \(")
_KERNEL = re.compile(
    r'custom_call_target="tpu_custom_call".*?metadata=\{op_name="([^"]*)"', re.DOTALL
)


def collectives(text):
    """Every exchange between chips.

    Args:
        text: of an optimised module, one chip's part of the program.

    Returns:
        A list of dicts: `kind` ("all-reduce", ...), `bytes` that a chip holds of the results,
        `shapes` of these (lists of sizes) and `group`, the number of chips that exchange
        (None where the text does not say). What stands in a loop is counted once.
    """
    found, computation = [], ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            computation = line
        match = _COLLECTIVE.search(line)
        if match is None:
            continue
        shapes = _SHAPE.findall(match["type"])
        if match["start"] and match["kind"] != "all-reduce":
            # The start of what runs beside other work carries its operands too; a permutation's
            # also two scalars of its own.
            shapes = [shape for shape in shapes if shape != ("u32", "")]
            shapes = shapes[len(shapes) // 2 :]
        group, kind, share = _group(line), match["kind"], 1
        if kind == "all-reduce" and _SCATTER.match(computation):  # each chip keeps a part of it
            kind, share = "reduce-scatter", group or 1
        found.append(
            {
                "kind": kind,
                "bytes": sum(_bytes(*shape) for shape in shapes) // share,
                "shapes": [_sizes(dimensions) for _, dimensions in shapes],
                "group": group,
            }
        )
    return found


def totals(found):
    """`collectives` by kind: `{"all-reduce": {"count": 3, "bytes": 1024}}`."""
    kinds = {}
    for one in found:
        kind = kinds.setdefault(one["kind"], {"count": 0, "bytes": 0})
        kind["count"] += 1
        kind["bytes"] += one["bytes"]
    return kinds


def kernels(text):
    """The Pallas kernels of a program for TPU: the scope in the model of each call, a list.

    What remat computes again stands in the scope that it was computed in first.
    """
    return [
        re.sub(r"(checkpoint|rematted_computation)/", "", scope) for scope in _KERNEL.findall(text)
    ]


def _sizes(dimensions):
    return [int(size) for size in dimensions.split(",") if size]


def _bytes(dtype, dimensions):
    bits = _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])
    return math.prod(_sizes(dimensions)) * bits // 8


def _group(line):
    """The number of chips in a replica group, which XLA writes in three ways."""
    match = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line)
    if match:
        axes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(axes[name]) for name in re.findall(r"'(\w+)'", match[2]))
    match = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if match:
        return int(match[1])
    match = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return len(match[1].split(",")) if match else None
