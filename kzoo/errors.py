"""The one exception for wrong input, and how its message is put together."""

import difflib

# What is installed under another name than it is imported.
_PACKAGES = {extra: f"'kzoo[{extra}]'" for extra in ("torch", "tensorflow", "ray")}
_PACKAGES |= {"libtpu": "'kzoo[tpu]'", "tensorboardX": "'kzoo[tensorboard]'"}
_PACKAGES |= {"sacrebleu": "'kzoo[evaluation]'", "rouge_score": "'kzoo[evaluation]'"}
_PACKAGES["lm_eval"] = "'kzoo[harness]'"
_PACKAGES["orbax"] = "orbax-checkpoint"
# Other words for what has a name here.
_ALSO_CALLED = {
    **{"rope": "rotary", "absolute": "learned", "full": "bidirectional", "prefix_mask": "prefix"},
    **{"mlm": "masked_lm", "clm": "causal_lm", "lm": "causal_lm", "seq2seq": "prefix_lm"},
    **{"gla": "gated_linear", "deltanet": "delta", "gated_deltanet": "gated_delta"},
    **{"retnet": "retention", "rmsnorm": "rms_norm", "layernorm": "layer_norm"},
}
MOST_NAMES = 24  # of a longer list the message shows the beginning


class InputError(ValueError):
    """Input that kzoo refuses: the message says what was received and what would be right.

    A `ValueError`, so that callers need not know this class; the command line
    prints it as one line and exits with status 2.
    """


def unknown(kind, received, valid):
    """An `InputError` for a name outside a closed set, with the nearest valid name.

    Args:
        kind: what the name stands for, e.g. `"preset"`.
        received: the offending value, of any type.
        valid: iterable of the valid names (strings).

    Returns:
        An `InputError`, to be raised by the caller.

    Example:
        >>> str(unknown("mask", "casual", ["causal", "prefix"]))
        "unknown mask; did you mean 'causal'? Valid: causal, prefix. Received: 'casual'"
    """
    valid = [str(v) for v in valid]
    hint = nearest(received, valid) or "."
    names = ", ".join(valid[:MOST_NAMES]) + ", …" * (len(valid) > MOST_NAMES)
    return InputError(f"unknown {kind}{hint} Valid: {names}. Received: {received!r:.120}")


def nearest(received, valid):
    """What a message says of the nearest valid name, if one is near.

    Args:
        received: the offending value, of any type.
        valid: list of the valid names.

    Example:
        >>> nearest("casual", ["causal", "prefix"])
        "; did you mean 'causal'?"
        >>> nearest("rope", ["none", "rotary"])
        "; did you mean 'rotary'?"
    """
    known = _ALSO_CALLED.get(str(received).lower())
    near = [known] if known in valid else []
    near = near or difflib.get_close_matches(str(received), valid, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def missing_package(module, purpose):
    """An `InputError` for a package that is not installed, with how to install it.

    Args:
        module: its name as it is imported; of a submodule its package counts.
        purpose: what needs it.

    Example:
        >>> str(missing_package("torch", "the backend torch"))
        "the backend torch needs a package: pip install 'kzoo[torch]'. Received: no module 'torch'"
    """
    package = module.partition(".")[0]
    name = _PACKAGES.get(package, package.replace("_", "-"))
    return InputError(
        f"{purpose} needs a package: pip install {name}. Received: no module {package!r}"
    )


class Preempted(SystemExit):
    """SIGTERM or SIGHUP came while a run trained, and the run has been saved.

    The same script or command, started again, goes on from there. Unless it is caught, the process
    exits with status 75 (EX_TEMPFAIL: try again).
    """

    STATUS = 75

    def __init__(self, message):
        super().__init__(self.STATUS)
        self.message = message

    def __str__(self):
        return self.message
