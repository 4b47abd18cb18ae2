"""The memory and FLOPs of presets on a v5e-8, by ahead-of-time compilation.

    python examples/tpu_table.py [SIZE ...] [--quick]

Runs `kzoo compile` for every preset of base, large and 1b, data parallel, and split over data and
model; for some of base with linear attention too; and for gpt_1b with each way to save memory.
Writes examples/tpu/programs.jsonl, a report a line, and examples/tpu/README.md, its table.
If it is stopped, the same command resumes it. SIZE (base, large, 1b, saving) chooses programs.
--quick is `kzoo compile --quick`: a fraction of the time, and more memory than the program that
would run; a later run without it does those again.
"""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

from kzoo import presets

FOLDER = Path(__file__).parent / "tpu"
ROWS, PAGE = FOLDER / "programs.jsonl", FOLDER / "README.md"
BATCHES = {"base": 64, "large": 32, "1b": 8}
MESHES = ("data=8", "data=4,model=2")
SPLIT = ["--topology", "v5e:2x4", "--mesh", "data=8", "--fsdp"]
LINEAR = ("gpt_base", "unilm_base", "bert_mixed_heads_base")
BFLOAT16 = ["--dtype", "mixed_bfloat16"]
LARGE_VOCABULARY = ["--set", "vocabulary_size=32768"]
SAVINGS = {
    "float32": ["--batch", "8", "--dtype", "float32"],
    "mixed_bfloat16": ["--batch", "8", *BFLOAT16],
    "and remat attention": ["--batch", "8", *BFLOAT16, "--remat", "attention"],
    "and remat block": ["--batch", "8", *BFLOAT16, "--remat", "block"],
    "twice the batch": ["--batch", "16", *BFLOAT16],
    "as two accumulated": ["--batch", "8", *BFLOAT16, "--accumulate", "2"],
    "32768 tokens": ["--batch", "8", *BFLOAT16, *LARGE_VOCABULARY],
    "and loss_tokens": ["--batch", "8", *BFLOAT16, *LARGE_VOCABULARY, "--set", "loss_tokens=512"],
}


def programs():
    """The arguments of `kzoo compile`, by a label (size, what it is)."""
    labelled = {}
    for size, batch in BATCHES.items():
        names = [name for name in presets.names() if name.endswith(f"_{size}")]
        which = [(name, "softmax") for name in names]
        which += [(name, "linear") for name in names if name in LINEAR]
        for mesh, (name, mechanism) in itertools.product(MESHES, which):
            how = ["--topology", "v5e:2x4", "--mesh", mesh, "--batch", str(batch)]
            how += [*BFLOAT16, "--set", f"mechanism={mechanism}"]
            labelled[size, f"{name} {mechanism} {mesh}"] = [name, *how]
    for label, how in SAVINGS.items():
        labelled["saving", label] = ["gpt_1b", *SPLIT, *how]
    return labelled


def page(rows):
    saving = [row for row in rows if row["size"] == "saving"]
    others = [row for row in rows if row["size"] != "saving"]
    missing = len(programs()) - len(rows)
    quick = sum(row["report"]["quick"] for row in rows)
    lines = [
        "# Programs for a v5e-8, compiled without one",
        "",
        "Written by `python examples/tpu_table.py`, from `kzoo compile` with libtpu on a CPU.",
        *[f"{missing} programs are still missing."] * (missing > 0),
        "GiB are those of one chip, which has 16; `programs.jsonl` has the whole reports and the",
        "command of each. Dtype mixed_bfloat16 unless said. No program has run: times at the peak",
        "are what none can beat.",
        *[
            f"{quick} of {len(rows)} rows are compiled with `--quick`: what would run takes a",
            "little less memory.",
        ]
        * (quick > 0),
        "",
    ]
    if others:
        lines += _table(others, lambda row: [row["report"]["preset"], _mechanism(row), _mesh(row)])
    if saving:
        lines += [
            *[""] * bool(others),
            "## What saves memory at 1b",
            "",
            "gpt_1b on v5e:2x4, parameters split over eight chips (`--fsdp`). Donated buffers save",
            "in every row what stands under donated: without them it would come on top.",
            "",
            *_table(saving, lambda row: ["gpt_1b", row["label"], ""]),
        ]
    return "\n".join(lines) + "\n"


HEAD = [
    *("preset", "attention", "mesh", "batch"),
    *("arguments", "temporaries", "donated", "total, GiB"),
    *("TFLOP a chip", "ms at peak", "collectives a chip, MiB", "Pallas calls"),
]


def _table(rows, name):
    yield "| " + " | ".join(HEAD) + " |"
    yield "|" + "---|" * len(HEAD)
    for row in rows:
        report = row["report"]
        program = report["programs"]["train_step"]
        memory, flops = program["memory"], program["flops"]
        cells = [*name(row), f"{report['batch']} × {report['time']}"]
        cells += [_gib(memory.get(part)) for part in ("arguments", "temporaries", "donated")]
        over = "" if program["fits"] else f", {_gib(program['over'])} too much"
        cells += [_gib(memory["total"]) + over, f"{flops['a_chip'] / 1e12:.2f}"]
        cells += [f"{flops['seconds'] * 1e3:.0f}"]
        found = program.get("collectives", {}).items()
        cells.append(
            ", ".join(f"{kind} {one['count']}: {_mib(one['bytes'])}" for kind, one in found)
        )
        calls = sum(one["calls"] for one in program.get("attention", {}).values())
        cells.append(str(calls) if program["fits"] else "")
        yield "| " + " | ".join(cells) + " |"


def _mechanism(row):
    return row["report"]["overrides"]["mechanism"]


def _mesh(row):
    return " × ".join(f"{axis} {size}" for axis, size in row["report"]["mesh"].items())


def _mib(count):
    return f"{count / 2**20:.0f}"


def _gib(count):
    return "" if count is None else f"{count / 2**30:.2f}"


def main(sizes, quick):
    FOLDER.mkdir(exist_ok=True)
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    done = {(row["size"], row["label"]): row for row in map(json.loads, lines)}
    for key, arguments in programs().items():
        known = key in done and (quick or not done[key]["report"]["quick"])
        if known or (sizes and key[0] not in sizes):
            continue
        command = ["kzoo", "compile", *arguments, *["--quick"] * quick]
        print(*command, flush=True)
        begin = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-m", *command, "--json"], stdout=subprocess.PIPE, text=True
        )
        print(f"{time.perf_counter() - begin:.0f} s", flush=True)
        if result.returncode:
            continue  # its message has been printed; the others go on
        row = {"size": key[0], "label": key[1], "command": " ".join(command)}
        done[key] = {**row, "report": json.loads(result.stdout)}
        rows = [done[key] for key in programs() if key in done]
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows))
        PAGE.write_text(page(rows))


if __name__ == "__main__":
    main([size for size in sys.argv[1:] if size != "--quick"], "--quick" in sys.argv)
