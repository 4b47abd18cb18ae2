"""The output folder of `kzoo train`: its checks, its settings and result, and how a run resumes.

A folder holds `training.json` from the first step on, with the run's settings and, once it is
finished, its result. Folders of before have only `checkpoints` until they are finished.
"""

import json
import logging
import os

from kzoo import migrations
from kzoo.cli import starting
from kzoo.errors import InputError
from kzoo.files import check_folder, check_new, numbered, read_json, taken, write
from kzoo.values import differences

RUN_FILE, CHECKPOINTS = "training.json", "checkpoints"
_BYTES = 300_000  # of what a model's folder holds besides the weights, at most


def check(options, config):
    """`InputError` unless the folder is new, or this command's, and can take the model."""
    from kzoo.config import checkpoint_bytes, count_parameters
    from kzoo.presets import TASK_FILE

    out = options.out
    if _run_file(out).get("result"):
        return
    begun = _has(out, RUN_FILE) or _has(out, CHECKPOINTS)
    if _has(out, TASK_FILE) and not begun:
        raise InputError(
            "the output must be a new or empty folder; this one holds a saved model, which "
            f"kzoo.presets.load reads. Received: {out}"
        )
    if not begun:
        check_new(out)
    parameters = count_parameters(config)
    # Three models: the last, the best, and a better one while it is written.
    needed = checkpoint_bytes(parameters, options.keep) + 3 * (4 * parameters + _BYTES)
    check_folder(out, needed - taken(out), "A smaller --keep needs less.")


def fill_in(options, config, evaluations):
    """Options that were left out: those of the run that is there, else the defaults."""
    recorded = _recorded(options.out)
    if options.learning_rate is None:
        default = starting.start_rate(options, config)
        options.learning_rate = recorded.get("learning_rate", default)
    if options.evaluations is None:
        options.evaluations = recorded.get("evaluations", evaluations)
    if options.packing is None:
        options.packing = recorded.get("packing", migrations.PACKING) if recorded else "padded"


def settings(options, config, splits):
    """What makes one run another than the next: a dict of JSON values."""
    of_data = ("sha256", "row_length", "train_rows", "tokenizer_sha256")
    given = ("preset", "steps", "batch_size", "learning_rate", "optimizer", "schedule", "dtype")
    return {
        **{name: getattr(options, name) for name in (*given, "evaluations", "packing")},
        "from": options.pretrained,
        "train_layers": options.train_layers,
        "lora_rank": options.lora_rank,
        "backend": os.environ["KERAS_BACKEND"],
        "config": config,
        "data": {name: splits.facts[name] for name in of_data if name in splits.facts},
    }


def result(out, settings):
    """The result of a run that has come to its end, with a word on what can be done now; or None.

    Raises:
        InputError: if the folder's run has other settings.
    """
    run = _run_file(out)
    if not run:
        return None
    before = {"evaluations": 1, "packing": migrations.PACKING, **starting.SETTINGS}
    recorded = migrations.record({**before, **run.get("settings", {})})
    other = list(differences(recorded, json.loads(json.dumps(settings))))
    if other:
        state = "a finished run" if run.get("result") else "a run"
        raise InputError(
            f"the output folder holds {state} of other settings: {'; '.join(other)}. Name "
            f"a new folder with --out. Received: {out}"
        )
    if run.get("result"):
        logging.getLogger("kzoo").info(
            "this run is finished; this is its result again. To train on, use fit on "
            "kzoo.presets.load(%r); to begin anew, name a new folder with --out",
            str(out),
        )
    return run.get("result")


def begin(out, settings):
    """Write down what the run is, before its first step."""
    out.mkdir(parents=True, exist_ok=True)
    _write(out, settings, None)


def finish(out, settings, result):
    """Write down the result, when the model is saved: a run that is killed in the midst of this is
    finished, or goes on."""
    _write(out, settings, result)


def saved(options):
    """What a run that is ended has saved, in a sentence."""
    if _run_file(options.out).get("result"):
        return f"the model is saved in {options.out}"
    folder = options.out / CHECKPOINTS
    steps = numbered(folder)
    if not steps:
        return "nothing is saved"
    return f"step {steps[0]} is saved in {folder}; the same command goes on from there"


def _write(out, settings, result):
    write(out / RUN_FILE, json.dumps({"settings": settings, "result": result}) + "\n")


def _has(out, name):
    return os.path.exists(out / name)  # where pathlib raises, for too long a name say, False


def _run_file(out):
    run = read_json(out / RUN_FILE) if _has(out, RUN_FILE) else {}
    return run if isinstance(run, dict) else {}


def _recorded(out):
    """Learning rate and evaluations of the run in the folder; empty if there is none."""
    run = _run_file(out)
    if run:
        return {"evaluations": 1, **run.get("settings", {})}
    for step in numbered(out / CHECKPOINTS):  # of a run of before
        facts = out / CHECKPOINTS / str(step) / "facts" / "metadata"
        try:
            recorded = json.loads(facts.read_text())["settings"]
            schedule = recorded["optimizer"]["learning_rate"]["config"]
            peak = schedule.get("warmup_target") or schedule["learning_rate"]
            return {"learning_rate": peak, "evaluations": recorded["evaluations"]}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # a damaged one
    return {}
