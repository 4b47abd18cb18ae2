# What type checkers see: the names that `__getattr__` loads when they are named.
from kzoo.studies.notebook import Results as Results
from kzoo.studies.notebook import compare as compare
from kzoo.studies.notebook import predict as predict
from kzoo.studies.page import report as report
from kzoo.studies.runner import run as run
from kzoo.studies.study import QUICK as QUICK
from kzoo.studies.study import Study as Study
