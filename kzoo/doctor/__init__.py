"""Whether this machine's devices compute what they should."""

import kzoo.load_keras  # noqa: F401
from kzoo.doctor.check import Check, Finding
from kzoo.doctor.report import checks, examine
from kzoo.doctor.show import summary, table

__all__ = ["Check", "Finding", "checks", "examine", "summary", "table"]
