"""Step 0: whether arms are what their hypothesis says, before anything is trained.

Configs say in which fields arms differ. Here the arms themselves are looked at, as they come from
the code and from modules of the user: their variables, initial values, batches and scored tokens.
"""

import hashlib
import json

from keras import ops

from kzoo import presets
from kzoo.errors import InputError
from kzoo.studies.amounts import load_splits
from kzoo.studies.fields import TRAINING
from kzoo.studies.protocol import AT_STEP_0

_BATCHES = 2  # that are compared
# Config fields that change no variable, not even its initial value.
_NO_VARIABLES = {"mask", "objective", "dropout", "identity_mix", "norm_epsilon", "loss_tokens"}
_NO_VARIABLES |= set(TRAINING)
# Fields that may add variables, and leave those alone that arms have in common.
_NO_OTHER_VALUES = _NO_VARIABLES | {"mechanism", "positions"}
_OF_SCORED = {"objective", "max_sequence_length", "vocabulary_size", "tokenizer", "batch_size"}
_OF_SCORED |= {"prediction_site"}
_OF_BATCHES = _OF_SCORED | {"stack", "num_segments"}


def compared(study):
    """Compare the arms of each hypothesis.

    Args:
        study: a `Study`.

    Returns:
        JSON of what was compared, a hash for each arm and name of `AT_STEP_0`; None for a study
        without hypotheses.

    Raises:
        InputError: if arms differ in what no field of `differ_in` explains, by name.
    """
    pairs = {(h.data, label) for h in study.hypotheses for label in h.labels}
    seen = {
        (source, label): _seen(study, source, arm)
        for source, label, arm in study.runs()
        if (source, label) in pairs
    }
    for hypothesis in study.hypotheses:
        first, *others = hypothesis.labels
        for label in others:
            _compare(hypothesis, first, label, seen)
    arms = [
        {"data": source, "arm": label, **{name: _digest(of[name]) for name in AT_STEP_0}}
        for (source, label), of in seen.items()
    ]
    return {"seed": study.seeds[0], "batches": _BATCHES, "arms": arms} if arms else None


def _seen(study, source, arm):
    """What is there at step 0 of an arm, by the names of `AT_STEP_0`."""
    config = arm.config(study.seeds[0])
    variables = presets.build(config).trainable_variables
    splits = load_splits(study, source, arm)
    count = min(_BATCHES, len(splits.train))
    batches = [splits.train[i] for i in range(count)]
    return {
        "variables": sorted(variable.path for variable in variables),
        "shapes": {variable.path: list(variable.shape) for variable in variables},
        "initial_values": {v.path: _sum(ops.convert_to_numpy(v)) for v in variables},
        "batches": [
            {name: _sum(ids) for name, ids in x.items() if name.endswith("token_ids")}
            for x, _, _ in batches
        ],
        "scored_tokens": [_sum(y[weight > 0]) for _, y, weight in batches],
    }


def _compare(hypothesis, first, label, seen):
    a, b = seen[hypothesis.data, first], seen[hypothesis.data, label]
    declared = set(hypothesis.differ_in)
    fields = declared - set(AT_STEP_0)
    common = [path for path in a["variables"] if path in b["shapes"]]
    shaped = [path for path in common if a["shapes"][path] == b["shapes"][path]]
    other = {
        "variables": sorted(set(a["variables"]) ^ set(b["variables"])),
        "shapes": [path for path in common if path not in shaped],
        "initial_values": [p for p in shaped if a["initial_values"][p] != b["initial_values"][p]],
        "batches": [i for i in range(len(a["batches"])) if a["batches"][i] != b["batches"][i]],
        "scored_tokens": [
            i for i in range(len(a["batches"])) if a["scored_tokens"][i] != b["scored_tokens"][i]
        ],
    }
    explained = {
        "variables": not fields <= _NO_VARIABLES,
        "shapes": not fields <= _NO_VARIABLES,
        "initial_values": not fields <= _NO_OTHER_VALUES,
        "batches": bool(fields & _OF_BATCHES),
        "scored_tokens": bool(fields & _OF_SCORED),
    }
    for name, where in other.items():
        if where and not explained[name] and name not in declared:
            what = f"first in batch {where[0]}" if isinstance(where[0], int) else where[0]
            raise InputError(
                f"the arms {first!r} and {label!r} of the hypothesis {hypothesis.name!r} differ at "
                f"step 0 in their {name.replace('_', ' ')} ({what:.120}), which none of their "
                f"fields explains; differ_in may name {name!r}. "
                f"Received: {list(hypothesis.differ_in)}"
            )


def _sum(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def _digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
