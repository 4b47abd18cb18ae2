"""Python reads this when it starts: tests/conftest.py has processes that tests start look here.

While Keras and keras-hub load, they load what else is installed, such as scikit-learn and
Matplotlib, which takes as long as they do; so they do not find it here. Later imports do.
TensorFlow, which takes longer still, is found if it is Keras's backend or was loaded before Keras.
"""

import os
import sys

NOT_NEEDED = ("IPython", "matplotlib", "nltk", "pandas", "sklearn")


def _loading(package):
    module = sys.modules.get(package)
    return module is not None and module.__spec__._initializing


class _Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "keras" and os.environ.get("KERAS_BACKEND") != "tensorflow":
            sys.modules.setdefault("tensorflow", None)
        keras_loads = _loading("keras") or _loading("keras_hub")
        # While it loads, torch._dynamo asks whether there are such packages, and takes no raise.
        if name in NOT_NEEDED and keras_loads and not _loading("torch._dynamo"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _Finder)
