"""Checks of records before they are shown, since files can be edited by hand."""

from kzoo.errors import InputError
from kzoo.values import is_number, shown

_KINDS = {
    "group": str,
    "measure": str,
    "status": str,
    "held_out": list,
    "train_loss": list,
    "bits": int | float | None,
    "scored_tokens": int,
    "parameters": int,
    "seconds": int | float,
    "tokens_per_second": int | float,
    "steps": int,
    "config": dict,
    "spectrum": list,
    "facts": dict,
    "provenance": dict,
}
_OF_A_CONFIG = ("mask", "mechanism", "objective", "stack", "num_layers", "num_heads")
_OF_AN_ORIGIN = ("versions", "kernels", "started")


def checked(records, directory):
    """`InputError` unless every record has what the page shows.

    Args:
        records: list of dicts.
        directory: of the study, for the message.
    """
    for record in records:
        missing = [field for field in _KINDS if field not in record]
        if missing:
            raise _wrong(directory, record, f"has {', '.join(_KINDS)}", f"no {missing[0]}")
        for field, kind in _KINDS.items():
            value = record[field]
            if not isinstance(value, kind) or isinstance(value, bool):
                raise _wrong(directory, record, f"has a {field} of its kind", value)
        for field, names in (("config", _OF_A_CONFIG), ("provenance", _OF_AN_ORIGIN)):
            lacking = [name for name in names if name not in record[field]]
            if lacking:
                raise _wrong(directory, record, f"has a {field} with {lacking[0]}", record[field])
        if record["status"] == "finished" and not is_number(record["bits"]):
            raise _wrong(directory, record, "that finished has bits", record["bits"])
        if not all(_is_point(point) for point in record["held_out"]):
            raise _wrong(directory, record, "has held_out pairs [step, bits]", record["held_out"])
        if not all(_is_value(loss) for loss in record["train_loss"]):
            raise _wrong(directory, record, "has a train_loss of numbers", record["train_loss"])


def _is_value(value):
    return value is None or isinstance(value, int | float) and not isinstance(value, bool)


def _is_point(point):
    return isinstance(point, list) and len(point) == 2 and all(map(_is_value, point))


def _wrong(directory, record, what, received):
    return InputError(
        f"the record of a run {what}; that of {record['run']!r} in {directory} does not. "
        f"Received: {shown(received)}"
    )
