# ---
# jupyter:
#   accelerator: TPU
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # kzoo on Colab's TPU
#
# A language model is trained in bfloat16, continues some text, and is saved; then models that
# differ in mask and mechanism are compared under equal conditions. Choose *Runtime >
# Change runtime type > v5e-1 TPU*, and run the cells from the top.
#
# Colab's free TPU is one v5e chip. How long a session lasts, and how many there are, Colab does
# not publish; so the minutes that a cell takes are measured, and printed before it starts.
#
# This notebook is made from `examples/colab_tpu.py`. The tests run it on CPUs, with tiny models;
# on a TPU it has not been run yet.

# %% Settings
import os
import sys
from pathlib import Path

# Where kzoo is installed from: its repository, or the folder of a clone, such as "/content/kzoo".
SOURCE = "git+https://github.com/kzoo/kzoo"

# Files go here, and are gone with the session. To keep them, mount your Drive
#     from google.colab import drive; drive.mount("/content/drive")
# and name a folder in it, such as Path("/content/drive/MyDrive/kzoo").
OUT = Path("runs")

# "full" is made for one v5e chip. "smoke" runs everything with tiny models, on any machine.
SIZE = os.environ.get("KZOO_EXAMPLE_SIZE", "full")

# Hours that there are of what, where that is published.
QUOTA = {}

DATA = "pydoc"
if SIZE == "full":
    PRESET, SMALLER = "gpt_base", {}
    BATCH, HELD_OUT, EPOCHS, EPOCH_STEPS, RATE, GENERATED = 16, 0.1, 10, 100, 3e-4, 200
    ARMS = {
        "causal": ("gpt_small", {"objective": "prefix_lm"}),
        "prefix": ("unilm_small", {}),
        "causal, linear": ("gpt_small", {"objective": "prefix_lm", "mechanism": "linear"}),
        "prefix, linear": ("unilm_small", {"mechanism": "linear"}),
    }
    STUDY = {"seeds": 2, "steps": 1000, "batch_size": 32, "learning_rate": 1e-3}
else:
    PRESET = "gpt_nano"
    SMALLER = {"num_layers": 1, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 32}
    SMALLER["max_sequence_length"] = 32
    BATCH, HELD_OUT, EPOCHS, EPOCH_STEPS, RATE, GENERATED = 8, 0.001, 2, 6, 3e-3, 24
    ARMS = {
        "causal": ("gpt_nano", {"objective": "prefix_lm"}),
        "prefix, linear": ("unilm_nano", {"mechanism": "linear"}),
    }
    STUDY = {"seeds": 1, "steps": 8, "batch_size": 8, "evaluations": 2, "valid": 0.001}

# JAX keeps compiled programs in this folder, so that none is compiled twice for the same device.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(OUT.absolute() / "compiled"))
os.environ["KERAS_BACKEND"] = "jax"  # read when Keras is imported

# %% [markdown]
# ## Install
#
# The image's own jax and libtpu fit its TPU, so they are kept; where its jax is older than kzoo
# needs, this cell stops and says so. Its Keras may be older, and is replaced. keras-hub goes in
# without what it asks for: it would bring TensorFlow, which nothing here uses. Where kzoo is
# installed already, nothing is installed.

# %% Install
import importlib.metadata
import importlib.util
import subprocess
import tempfile

from packaging.requirements import Requirement

JAX = Requirement("jax>=0.10")
OF_THE_IMAGE = ["jax", "jaxlib", "libtpu"]
NEEDED = [
    "keras>=3.15",
    "numpy>=2.0",
    "scipy>=1.15",
    "statsmodels>=0.14.5",
    "grain>=0.2.18",
    "orbax-checkpoint>=0.12.8",
    "tensorflow-datasets>=4.9.10",
    "importlib_resources>=6.5",
    "rich>=14",
    "safetensors>=0.8",
    "tokenizers>=0.21",
    "huggingface_hub>=1.0",
    "jinja2>=3.1",
    "matplotlib>=3.9",
    "altair>=6.0",
    "vl-convert-python>=1.9",
    "pandas>=2.2",
    # What keras-hub needs besides, without TensorFlow
    "absl-py",
    "packaging",
    "regex",
    "sentencepiece",
    "kagglehub!=1.0.1",
    "kagglesdk==0.1.28",
]


class Stop(Exception):
    """Ends the cell with one line, without a traceback."""

    def _render_traceback_(self):
        return [str(self)]


def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments], check=True)


image = version("jax")
if image is None or not JAX.specifier.contains(image, prereleases=True):
    raise Stop(f"kzoo needs {JAX}, and this image has {image or 'none'}: choose a newer image")
installing = importlib.util.find_spec("kzoo") is None
if installing:
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "kept.txt"
        kept.write_text("".join(f"{n}=={version(n)}\n" for n in OF_THE_IMAGE if version(n)))
        pip("--constraint", str(kept), *NEEDED)
    pip("--no-deps", "keras-hub>=0.32", SOURCE)

early = sys.modules.get("keras")
if early and (installing or early.config.backend() != "jax"):
    raise Stop("Keras was imported before this cell: restart the session, and run again")

# %% [markdown]
# ## Check the devices
#
# Every kernel that kzoo would choose here is compared with its definition, and a step of training
# of every kind of model with the same step on the CPU. Where something is off, the table says so:
# send the JSON file with a bug report. It runs in a process of its own, which gives the TPU back.

# %% Check
DOCTOR = OUT / "kzoo-doctor.json"
check = [sys.executable, "-m", "kzoo", "doctor", "--out", str(DOCTOR)]
if SIZE == "full":
    print(subprocess.run(check, stdout=subprocess.PIPE, text=True).stdout)

# %% [markdown]
# ## Devices
#
# `kzoo.distribute()` gives every device a part of each batch; on one device it changes nothing.
# It comes before the model is made.

# %% Devices
import jax
import keras

import kzoo

devices = jax.devices()
print(f"{len(devices)} × {devices[0].device_kind}")
print(f"JAX {jax.__version__}, Keras {keras.__version__}")
if SIZE == "full" and devices[0].platform == "cpu":
    raise Stop('there is no TPU here: choose one for this runtime, or set SIZE = "smoke"')
print(kzoo.distribute())

# %% [markdown]
# ## Load
#
# A preset with random weights, which computes in bfloat16 and keeps weights and the sums that
# need it in float32. It learns Python's own documentation, 2 MB of English that every Python has;
# the path of a text file or of a folder of them can stand in place of `"pydoc"`.

# %% Load
model = kzoo.presets.load(PRESET, dtype="mixed_bfloat16", **SMALLER)
splits = kzoo.data.load(DATA, model, batch_size=BATCH, valid=HELD_OUT)
steps = EPOCHS * EPOCH_STEPS
model.compile(optimizer=kzoo.training.adamw(RATE, steps))
print(f"{model.count_params():,} parameters, {EPOCHS} epochs of {EPOCH_STEPS} steps")


# %% [markdown]
# ## Fit
#
# First its time is measured: a few steps run and are undone. Compiling them takes from one to
# three minutes for a base model, and `fit` reuses the programs.


# %% How long the training takes
def say(what, minutes):
    shares = [f"{minutes / 60 / hours:.1%} of {name}" for name, hours in QUOTA.items()]
    print(", ".join([what, *shares]))


timing = kzoo.training.measure(model, splits.train, splits.valid, steps=steps)
minutes = timing.minutes(steps, evaluations=EPOCHS)
print(f"compiled in {timing.compiling:.0f} s; a step takes {timing.step:.3f} s")
say(f"fit: about {minutes:.1f} minutes for {steps} steps and {EPOCHS} validations", minutes)

# %% [markdown]
# A checkpoint is written every two minutes. Where the session ends early, run the notebook again
# with the same `OUT`: `fit` resumes from the last one, and takes less time than was printed.

# %% Fit
import time

checkpoints = kzoo.training.Checkpoints(OUT / "fit", every="120s")
start = time.perf_counter()
history = model.fit(
    checkpoints.data(splits.train.repeat()),
    steps_per_epoch=EPOCH_STEPS,
    epochs=EPOCHS,
    validation_data=splits.valid,
    callbacks=[checkpoints],
    verbose=2,
)
print(f"it took {(time.perf_counter() - start) / 60:.1f} minutes")

# %% Its curve
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
bits = history.history.get("val_bits_per_byte", [])  # none, if all was done before
axes.plot(history.epoch[: len(bits)], bits, marker="o")
axes.set(xlabel="epoch", ylabel="held-out bits per byte")
plt.show()

# %% [markdown]
# ## Generate
#
# Continuations, token by token; `sampler` is `"greedy"`, `"top_p"` and so on.

# %% Generate
PROMPTS = ["Return the ", "The string ", "If the argument is ", "A list of "] * 2
for text in model.generate(PROMPTS, max_length=GENERATED, sampler="greedy")[:4]:
    print(repr(text))

# %% [markdown]
# ## Save
#
# `kzoo.presets.load` of this folder loads the model, on this machine or another.

# %% Save
kzoo.presets.save(model, OUT / "model")
print(*sorted(path.name for path in (OUT / "model").iterdir()), sep="\n")

# %% [markdown]
# ## Compare
#
# Arms that differ in mask and mechanism, with the same initial values and the same batches. All
# runs go on in this process, since one process holds the TPU: one on each device where there are
# several, else one after another. So each run has one device, and the distribution ends here.

# %% Make room
del model, history, checkpoints
keras.distribution.set_distribution(None)
keras.config.set_dtype_policy("mixed_bfloat16")  # of the models that `compare` makes

# %% [markdown]
# Its time is measured first, on every arm. Each is compiled for that, which may take a minute or
# two.

# %% How long the comparison takes
study = {
    "arms": {label: (name, {**SMALLER, **fields}) for label, (name, fields) in ARMS.items()},
    "data": DATA,
    **STUDY,
    "directory": OUT / "compare",
}
prediction = kzoo.studies.predict(**study)
say(f"compare: {prediction}", prediction.minutes)

# %% [markdown]
# If it is stopped, the next cell resumes it, with the same `OUT`.

# %% Compare
start = time.perf_counter()
results = kzoo.compare(**study)
print(f"it took {(time.perf_counter() - start) / 60:.1f} minutes")

# %% [markdown]
# Held-out bits per byte: the mean over seeds, the least and the greatest.

# %% The table
results.table()[["arm", "parameters", "mean", "min", "max", "seconds"]]

# %% Their curves
results.plot()

# %% [markdown]
# The whole report: masks, curves, spectra of attention, and where everything comes from. It is
# one file, which opens in any browser. Two seeds show how large the noise is; they give no
# verdict.

# %% Report
import html

from IPython.display import HTML

page = results.report()
print(page)
frame = f'<iframe srcdoc="{html.escape(page.read_text())}" width="100%" height="800"></iframe>'
HTML(f"<div>{frame}</div>")
