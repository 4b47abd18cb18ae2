"""Products of matrices on a CPU under JAX, by oneDNN.

XLA shares a product out over processors only where one matrix is large, so that the many small ones
of attention run on one of them. oneDNN, which jaxlib holds, shares out both, and is the faster at
large ones too where a CPU has AVX-512. XLA calls it where two flags ask for it.
"""

import logging
import os
import platform
import sys
from importlib import metadata

from kzoo.program_cache import cpu_features

FLAGS = (
    "--xla_cpu_use_onednn=true",
    "--xla_cpu_experimental_onednn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
)
# XLA ends the process at a flag that it does not know, and that of jaxlib 0.10.1 at products that
# oneDNN refuses; tests/test_onednn.py tells whether another version may stand here.
TESTED = ("0.10.2",)

log = logging.getLogger("kzoo")


def use_onednn():
    """Put `FLAGS` into XLA_FLAGS, where they were tried; call it before JAX looks for devices.

    That is: KERAS_BACKEND is jax, on Linux, on a CPU with AVX-512 (without, large products are no
    faster, and XLA's calls of oneDNN have crashed), with a jaxlib of `TESTED`. An XLA_FLAGS that
    names oneDNN is left as it is: `XLA_FLAGS=--xla_cpu_use_onednn=false` keeps it out. Logged where
    jaxlib is the reason not to, and where JAX runs on a CPU already and so reads no more flags.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if os.environ.get("KERAS_BACKEND") != "jax" or "onednn" in flags:
        return
    if platform.system() != "Linux" or "avx512bw" not in cpu_features().split():
        return
    version = metadata.version("jaxlib")
    if version not in TESTED:
        log.info(
            "Products of matrices on a CPU take longer: oneDNN is used with jaxlib %s, not with %s",
            " or ".join(TESTED),
            version,
        )
    elif _runs_on_cpu():
        log.warning(
            "Products of matrices take longer: JAX was running before kzoo was imported, and reads "
            "XLA_FLAGS no more. Import kzoo first"
        )
    else:
        os.environ["XLA_FLAGS"] = " ".join([*FLAGS, flags]).strip()


def _runs_on_cpu():
    """Whether JAX has looked for devices and computes on a CPU."""
    bridge = sys.modules.get("jax._src.xla_bridge")  # no public name tells
    if bridge is None or not bridge.backends_are_initialized():
        return False
    return sys.modules["jax"].default_backend() == "cpu"
