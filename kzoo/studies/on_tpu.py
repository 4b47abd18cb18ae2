"""How long a study would take on TPUs, found without one: its programs are compiled ahead of time.

The least time of a step follows from the compiled program. What of it a chip reaches, and what
Python takes, is assumed, and said: no TPU has run these programs.
"""

import dataclasses
import logging
import math
import time
from typing import Any

import numpy as np

from kzoo.errors import InputError, unknown
from kzoo.studies import amounts, programs
from kzoo.studies.metrics import measured
from kzoo.studies.prediction import jobs_of, seconds
from kzoo.studies.runner import SPECTRUM_ROWS
from kzoo.training.compile_only import step_of_a_chip
from kzoo.training.compile_only.target import CHIPS, TOPOLOGIES
from kzoo.training.loop import steps_of_a_call

log = logging.getLogger("kzoo")
OF_ROOFLINE = 0.4  # of the speed that a program cannot beat; training on TPUs reaches 0.3 to 0.6
CALL_SECONDS = 0.002  # of Python for a call of the step; chips of one process take turns at it
FORWARD = 1 / 3  # of a step of training
A_HOST = 8  # chips of one host, at most


@dataclasses.dataclass(frozen=True)
class Hours:
    """What `hours` found; `str` of it says the most of it.

    Attributes:
        study: its name.
        hours: until the last run is made, compilation included; None where a program does not fit.
        topology, chips: what it was compiled for.
        runs, tuning_runs: all of them, and those that choose rates; widened grids add to them.
        dtype: of the programs.
        quick: whether they were compiled without XLA's optimizations.
        programs: a dict for each arm on each source: `data`, `arm`, `parameters`, `batch_size`,
            `time` (tokens of a row), `steps`, `passes` over the data, `runs`, `fits` (with `over`,
            the bytes of a chip that are missing, if not); and in seconds `peak` and `roofline`, the
            least of a step by its products and by those or its bytes, `step` and `run` as assumed,
            `spectrum` (that part of a run) and `compile`.
        assumed: sentences.
    """

    study: str
    hours: float | None
    topology: str
    chips: int
    runs: int
    tuning_runs: int
    dtype: str
    quick: bool
    programs: list
    assumed: tuple

    def __str__(self):
        where = f"{self.chips} chips" if self.chips > 1 else "1 chip"
        if self.hours is None:
            lines = [f"{self.study}: no hours, as programs do not fit; give a smaller batch_size"]
            lines += [
                f"{row['arm']}: needs {row['over'] / 2**30:.1f} GiB more than a chip has"
                for row in self.programs
                if not row["fits"]
            ]
        else:
            lines = [
                f"{self.study}: about {self.hours:.2g} hours on {where} ({self.topology}), a run "
                f"on each at a time: {self.runs} runs, {self.tuning_runs} of them to choose rates; "
                "a grid that is widened adds to them"
            ]
        if self.chips > A_HOST:
            lines.append("more chips than those of one host take kzoo compare --ray")
        return "\n".join([*lines, *(f"assumed: {each}" for each in self.assumed)])

    def to_dict(self) -> dict[str, Any]:
        """JSON of all of it."""
        return dataclasses.asdict(self)


def hours(study, topology, *, dtype=None, quick=False):
    """How long a new `kzoo compare` of a study would take on the chips of a topology.

    Every program is compiled for one chip, as each run has one. Runs are handed out as
    `kzoo.studies.run` does it. Nothing is trained; of the data the batches are counted.

    Args:
        study: a `Study`.
        topology: of `kzoo.training.compile_only.target.TOPOLOGIES`, such as `"v5e:2x4"`.
        dtype: a Keras dtype policy; by default Keras's own, as in `kzoo compare`.
        quick: compile without XLA's optimizations, in a fraction of the time: programs move more
            bytes then, so that hours are those of their products alone.

    Returns:
        `Hours`, to be printed.

    Raises:
        InputError: for an unknown topology or dtype, chips that have no slice of one, unusable
            data, or without libtpu.
    """
    chip, chips = _chips(topology)
    tuning, deciding = jobs_of(study)
    jobs, study = tuning + deciding, amounts.with_steps(study, study)
    runs = {(source, label): 0 for source, label, _ in jobs}
    for source, label, seeds in jobs:
        runs[source, label] += len(seeds)
    rows, known, spectra = [], {}, {}
    for (source, label), count in runs.items():
        arm = study.arms[label]
        row = _program(study, source, arm, chip, chips, dtype, quick, known, spectra)
        rows.append({"data": source, "arm": label, "runs": count, **row})
    total = None
    if all(row["fits"] for row in rows):
        of = {(row["data"], row["arm"]): row for row in rows}
        starting, running = ({key: row[n] for key, row in of.items()} for n in ("compile", "run"))
        total = seconds(jobs, chips, starting, running) / 3600
    count = [sum(len(seeds) for *_, seeds in each) for each in (jobs, tuning)]
    policy = next(iter(known.values()))["dtype"] if known else dtype or "float32"
    given = (study.name, total, topology, chips, *count, policy, quick, rows)
    return Hours(*given, _assumed(study, quick))


def _chips(topology):
    """The name of the chip and the number of chips."""
    if topology not in TOPOLOGIES:
        raise unknown("topology", topology, TOPOLOGIES)
    chip, _, shape = topology.partition(":")
    if "1x1" not in CHIPS[chip].shapes:
        alone = [name for name, other in CHIPS.items() if "1x1" in other.shapes]
        raise InputError(
            "each run of a study has a chip of its own, and programs of one chip are compiled for "
            f"{' and '.join(alone)}. Received: topology={topology!r}"
        )
    return chip, math.prod(map(int, shape.split("x")))


def _program(study, source, arm, chip, chips, dtype, quick, known, spectra):
    """A row of `Hours.programs`; `known` keeps compiled programs, `spectra` their seconds."""
    config, training = arm.config(study.seeds[0]), study.training(arm, source)
    size, steps = training["batch_size"], study.steps_of(arm, source)
    splits = amounts.load_splits(study, source, arm)
    # What is compiled is the optimizer of a preset, at all steps and rates the same.
    key = programs.shape(config, {**training, "batch_size": size}, 0), size
    if key not in known:
        start = time.process_time()
        made = step_of_a_chip(config, chip, size, dtype=dtype, quick=quick)
        known[key] = {**made, "compile": time.process_time() - start}
        log.info("compiled %s for %s", arm.preset, chip)
    report = known[key]
    row = {
        "parameters": report["parameters"],
        "batch_size": size,
        "time": config["max_sequence_length"],
        "steps": steps,
        "passes": steps / len(splits.train),
        "fits": report["fits"],
    }
    if not report["fits"]:
        return {**row, "over": report["over"]}
    peak, roofline = report["flops"]["seconds"], report["roofline_seconds"]
    least = (peak if quick else roofline) / OF_ROOFLINE
    step = max(least, chips * CALL_SECONDS / steps_of_a_call(report["parameters"]))
    measurements = study.evaluations + bool(measured(study))
    held_out = measurements * len(splits.valid) * max(least * FORWARD, chips * CALL_SECONDS)
    spectrum = _spectrum(config, spectra)
    row |= {"peak": peak, "roofline": roofline, "step": step, "spectrum": spectrum}
    return {**row, "run": steps * step + held_out + spectrum, "compile": report["compile"]}


def _spectrum(config, known):
    """Seconds of a core of this machine for the singular values of all heads of some rows."""
    n = config["max_sequence_length"]
    if n not in known:
        matrix = np.random.default_rng(0).random((n, n))
        start = time.process_time()
        np.linalg.svd(matrix, compute_uv=False)
        known[n] = time.process_time() - start
    layers = config["num_layers"]
    if config["stack"] != "single":
        layers += config["decoder_layers"] or layers
    return known[n] * SPECTRUM_ROWS * layers * config["num_heads"]


def _assumed(study, quick):
    what = "its products at the peak" if quick else "its roofline"
    said = [
        f"a step reaches {OF_ROOFLINE:.0%} of {what}; each call of it takes "
        f"{CALL_SECONDS * 1e3:g} ms of Python, at which the chips of a process take turns; a "
        "held-out batch takes a third of a step",
        "compiling, once for each program on each chip, and the singular values at the end of each "
        "run take the seconds of one core that they take on this machine",
    ]
    optimizers = {study.training(arm)["optimizer"] for arm in study.arms.values()}
    if optimizers != {"adamw"}:
        said.append("every step is AdamW's; muon multiplies more matrices")
    return tuple(said)
