# What type checkers see: the submodules that `__getattr__` loads when they are named.
from kzoo import analysis as analysis
from kzoo import config as config
from kzoo import convert as convert
from kzoo import data as data
from kzoo import evaluation as evaluation
from kzoo import feature_maps as feature_maps
from kzoo import layers as layers
from kzoo import masks as masks
from kzoo import mechanisms as mechanisms
from kzoo import models as models
from kzoo import objectives as objectives
from kzoo import ops as ops
from kzoo import presets as presets
from kzoo import studies as studies
from kzoo import training as training
from kzoo.analysis.check import check as check
from kzoo.evaluation.choices import evaluate_choices as evaluate_choices
from kzoo.studies.notebook import compare as compare
from kzoo.training.distribution import distribute as distribute

__version__: str
