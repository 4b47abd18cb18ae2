"""The page of a study, its figures and its tables, made from the study's files alone."""

from kzoo.studies.page.tables import table
from kzoo.studies.page.writing import index, plot, report

__all__ = ["index", "plot", "report", "table"]
