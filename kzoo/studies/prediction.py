"""How long a study takes, measured on its own programs before it starts."""

import dataclasses
import time

from kzoo.analysis import attention_spectrum
from kzoo.studies import amounts, programs, retuning, tuning
from kzoo.studies.folder import as_begun, check_directory, finished_runs
from kzoo.studies.runner import SPECTRUM_ROWS, Trainer, jobs_left
from kzoo.studies.threads import devices, on_the_first, share_out
from kzoo.training.timing import measure


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What `predict` found.

    Attributes:
        minutes: that `run` takes, compilation included.
        runs: how many are left to do.
        devices: that they are shared out among.
        seconds: of one run of each program, a dict by (source, label).
    """

    minutes: float
    runs: int
    devices: int
    seconds: dict

    def __str__(self):
        runs = "1 run" if self.runs == 1 else f"{self.runs} runs"
        places = "1 device" if self.devices == 1 else f"{self.devices} devices"
        return f"about {_about(self.minutes)} for {runs} on {places}, compilation included"


def predict(study, directory=None):
    """How long `kzoo.studies.run` would take here, one run after another on each device.

    Every program is compiled, makes some steps on one device, and is thrown away. With JAX's
    compilation cache (the environment variable JAX_COMPILATION_CACHE_DIR) the study need not
    compile it again on that device; the others compile for themselves at the same time.
    Devices that share the cores of one CPU take longer than this says.

    Args:
        study: a `Study`.
        directory: what is finished there is left out.

    Returns:
        A `Prediction`, to be printed.

    Raises:
        InputError: as `kzoo.studies.run`.

    Example:
        >>> print(predict(Study.from_json("study.json")))
        about 12 minutes for 8 runs on 8 devices, compilation included
    """
    if directory is not None:
        study = as_begun(study, directory)
        check_directory(study, directory)
    jobs = sum(jobs_of(study, directory), [])
    study = amounts.with_steps(study, study)
    places = max(1, len(devices()))
    starting, running = {}, {}
    try:
        for source, label in dict.fromkeys(job[:2] for job in jobs):
            with on_the_first():
                starting[source, label], running[source, label] = _measured(study, source, label)
    finally:
        programs.forget()
    runs = sum(len(seeds) for *_, seeds in jobs)
    last = seconds(jobs, places, starting, running)
    return Prediction(last / 60, runs, min(places, max(1, runs)), running)


def seconds(jobs, places, starting, running):
    """Seconds until devices have worked off all jobs, each taking the next one when it is free.

    Args:
        jobs: list of (source, label, seeds).
        places: the number of devices.
        starting, running: of each (source, label), the seconds that a device takes to begin with
            it, once, and for each run.
    """
    ends, compiled = [0.0] * places, set()
    for source, label, seeds in share_out(jobs, places):
        first = ends.index(min(ends))  # takes the next job
        if (first, source, label) not in compiled:
            ends[first] += starting[source, label]
            compiled.add((first, source, label))
        ends[first] += len(seeds) * running[source, label]
    return max(ends)


def jobs_of(study, directory=None):
    """What a study has left to do: the jobs of its tuning, of the arms themselves and unless a
    grid must be widened, and those of its own runs; two lists of (source, label, seeds)."""
    done = {} if directory is None else finished_runs(directory)
    return _tuning_left(study, directory), jobs_left(study, done)


def _tuning_left(study, directory):
    if not study.tuning:
        return []
    asked, own, others = retuning.known(study, directory)
    return [
        (source, tuning.as_record({"arm": label})["arm"], seeds)
        for source, label, seeds in jobs_left(asked, {**own, **others})
    ]


def _measured(study, source, label):
    """Seconds that a program takes to begin, and for each of its runs."""
    start = time.perf_counter()
    trainer = Trainer(study, source, study.arms[label])
    making = time.perf_counter() - start
    splits = amounts.load_splits(study, source, trainer.arm)
    timing = measure(
        trainer.program.model,
        splits.train,
        splits.valid,
        steps=trainer.steps,
        evaluator=trainer.program.evaluator,
    )
    x, _, _ = splits.valid[0]
    row = {name: array[:1] for name, array in x.items()}
    spectrum = []
    for _ in range(2):  # the first compiles
        start = time.perf_counter()
        attention_spectrum(trainer.program.model, row)
        spectrum.append(time.perf_counter() - start)
    begin = making + timing.compiling + max(0.0, spectrum[0] - spectrum[1])
    run = making + 60 * timing.minutes(trainer.steps, study.evaluations)
    return begin, run + SPECTRUM_ROWS * spectrum[1]


def _about(minutes):
    if minutes < 1:
        return "a minute" if minutes > 0 else "0 minutes"
    return f"{minutes:.0f} minute{'s' if round(minutes) > 1 else ''}"
