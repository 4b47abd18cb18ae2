# What type checkers see: the names that `__getattr__` loads when they are named.
from kzoo.data import sources as sources
from kzoo.data import tasks as tasks
from kzoo.data.classes import labels as labels
from kzoo.data.pipeline import Splits as Splits
from kzoo.data.pipeline import load as load
from kzoo.data.tokenizer_training import train_tokenizer as train_tokenizer
