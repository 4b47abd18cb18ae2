# ---
# jupyter:
#   accelerator: TPU
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # kzoo on Kaggle's TPU
#
# A language model is trained in bfloat16, continues some text, and is saved; then two studies of
# the repository are run at small size, each to its verdicts: whether half of a BERT's heads had
# better look forward and half backward (Q4), and whether linear attention is further behind in
# masked LM (Q5). Choose *TPU v5e-8* as the accelerator, switch the internet on, and run the cells
# from the top.
#
# Kaggle gives 20 hours of TPU in a week, and at most 9 in a session. What the long cells take of
# them, and whether that fits, is measured and printed before they start. A study that is not done
# when the session ends goes on in the next one.
#
# This notebook is made from `examples/kaggle_tpu.py`. The tests run it on CPUs, with tiny models;
# on a TPU it has not been run yet.

# %% Settings
import os
import sys
import time
from pathlib import Path

BEGAN = time.time()

# Where kzoo is installed from: its repository, or a dataset that holds a clone, such as
# "/kaggle/input/kzoo".
SOURCE = "git+https://github.com/kzoo/kzoo"

# Files go here: in /kaggle/working, where they stay as the output of the notebook's version.
OUT = Path("runs")
# To go on with the studies of an earlier session: its OUT, when its output has been added as an
# input, such as Path("/kaggle/input/my-notebook/runs").
EARLIER = None

# "full" is made for eight v5e chips. "smoke" runs everything with tiny models, on any machine.
SIZE = os.environ.get("KZOO_EXAMPLE_SIZE", "full")

# Hours that there are.
QUOTA = {"a week's quota": 20, "a session": 9}

DATA = "pydoc"
if SIZE == "full":
    PRESET, SMALLER = "gpt_base", {}
    BATCH, HELD_OUT, EPOCHS, EPOCH_STEPS, RATE, GENERATED = 64, 0.1, 20, 25, 6e-4, 200
    # Files under examples/studies: the size of their presets, and the steps of each run.
    STUDIES = {
        "q4-mixed-directions/rotary.json": {"size": "small", "steps": 2000},
        "q5-linear-or-softmax/mechanisms.json": {"size": "small", "steps": 2000},
    }
else:
    PRESET = "gpt_nano"
    SMALLER = {"num_layers": 1, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 32}
    SMALLER["max_sequence_length"] = 32
    BATCH, HELD_OUT, EPOCHS, EPOCH_STEPS, RATE, GENERATED = 8, 0.001, 2, 6, 3e-3, 24
    STUDIES = {"q4-mixed-directions/rotary.json": {"size": "nano", "steps": 8}}

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


def repository():
    """The folder of a clone of kzoo's repository."""
    if not SOURCE.startswith("git+"):
        return Path(SOURCE)
    clone = Path(tempfile.gettempdir()) / "kzoo"
    if not clone.exists():
        address = SOURCE.removeprefix("git+")
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", address, clone], check=True)
    return clone


installing = importlib.util.find_spec("kzoo") is None
if installing:
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "kept.txt"
        kept.write_text("".join(f"{n}=={version(n)}\n" for n in OF_THE_IMAGE if version(n)))
        pip("--constraint", str(kept), *NEEDED)
    pip("--no-deps", "keras-hub>=0.32", str(repository()))
# Studies come with the repository; where kzoo is not installed, but imported from a clone, with it.
FILES = Path(importlib.util.find_spec("kzoo").origin).parents[1] / "examples" / "studies"
if not FILES.is_dir():
    FILES = repository() / "examples" / "studies"

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
# Studies of the repository, each in a file that says its arms, seeds, rates to be tried and
# hypotheses, here with presets of another size. All runs go on in this process, since one process
# holds the TPU: one on each device where there are several, else one after another. So each run
# has one device, and the distribution ends here.

# %% Make room
del model, history, checkpoints
keras.distribution.set_distribution(None)
keras.config.set_dtype_policy("mixed_bfloat16")  # of the models that studies make

# %% The studies
import shutil

from kzoo.studies import Results, Study, planning, run, sizes


def smaller(study):
    """For the smoke run: two arms of a study, one seed, and no verdicts."""
    fields = study.to_dict()
    arms = dict([*fields["arms"].items()][:2])
    for arm in arms.values():
        arm["overrides"] = {**arm["overrides"], **SMALLER}
    kept = {name: fields[name] for name in ("name", "description", "data", "steps")}
    few = {"seeds": 1, "batch_size": 8, "evaluations": 2, "valid": 0.001}
    return Study.from_dict({**kept, **few, "arms": arms})


studies = {}
for file, how in STUDIES.items():
    given = Study.from_json(FILES / file)
    study = given.at(**how)
    print(study.name, *sizes.changes(given, study), sep="\n    ")
    folder = OUT / "studies" / study.name
    if EARLIER and not folder.exists() and (EARLIER / "studies" / study.name).exists():
        shutil.copytree(EARLIER / "studies" / study.name, folder)
    studies[folder] = smaller(study) if SMALLER else study

# %% [markdown]
# Their time is measured first, on every arm. Each is compiled for that, which may take a minute or
# two. What is finished is left out.

# %% How long the comparison takes
SPARE = 0.5  # hours of a session, for what comes after the studies


def hours_left():
    """Of this session for studies; None where nobody says how long it lasts."""
    session = QUOTA.get("a session")
    return session and max(0.0, session - SPARE - (time.time() - BEGAN) / 3600)


minutes = 0.0
for folder, study in studies.items():
    planned = planning.plan(study, folder)
    say(f"compare: {study.name}, {planned}", planned.prediction.minutes)
    minutes += planned.prediction.minutes
if QUOTA:
    hours, left = minutes / 60, hours_left()
    sessions = 1 + max(0, -(-(hours - left) // (QUOTA["a session"] - SPARE)))
    week = QUOTA["a week's quota"]
    fits = "fits" if hours <= week else "does NOT fit; give fewer steps, or go on next week"
    print(f"all studies: {hours:.1f} hours, of which {min(hours, left):.1f} in this session")
    print(f"{sessions:.0f} session(s); into a week's quota of {week} hours it {fits}")

# %% [markdown]
# Where the session ends before the studies do, they stop in time and go on when the notebook is
# run again with the same files in `OUT`, or with what the earlier session left as `EARLIER`.

# %% Compare
found = {}
for folder, study in studies.items():
    start, left = time.time(), hours_left()
    if left == 0:
        print(f"{study.name}: no time is left in this session")
        continue
    records = run(study, folder, minutes=left and 60 * left)
    print(f"{study.name}: it took {(time.time() - start) / 60:.1f} minutes")
    if records:
        found[study.name] = Results(records, folder)

# %% [markdown]
# What each study says of its hypotheses, once all of its runs are there.

# %% Verdicts
for name, results in found.items():
    print(f"{name}: {len(results.records)} runs", *results.verdicts(), sep="\n    ")

# %% [markdown]
# Held-out bits per byte: the mean over seeds, the least and the greatest.

# %% The table
from IPython.display import HTML, display

for results in found.values():
    display(results.table()[["group", "arm", "parameters", "mean", "min", "max", "seconds"]])

# %% Their curves
for results in found.values():
    display(results.plot())

# %% [markdown]
# The whole reports: verdicts, masks, curves, spectra of attention, and where everything comes
# from. Each is one file, which opens in any browser.

# %% Report
import html

for results in found.values():
    page = results.report()
    print(page)
    frame = f'<iframe srcdoc="{html.escape(page.read_text())}" width="100%" height="800"></iframe>'
    display(HTML(f"<div>{frame}</div>"))
