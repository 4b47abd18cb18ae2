"""Comparisons under control: arms that differ in one choice, run, measured and reported."""

from kzoo.studies.compare import Results, compare
from kzoo.studies.report import report
from kzoo.studies.runner import run
from kzoo.studies.study import QUICK, Study

__all__ = ["QUICK", "Results", "Study", "compare", "report", "run"]
