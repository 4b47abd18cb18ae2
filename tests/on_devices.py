"""One epoch more on some devices, with checkpoints: `on_devices.py COUNT DIR EPOCHS`.

Restores what DIR holds, writes the values it found there to COUNT.npz, and trains to EPOCHS.
"""

import os
import sys
from pathlib import Path

count, directory, epochs = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}"
import grain  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402

from kzoo.training import Checkpoints  # noqa: E402

if count > 1:
    names = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((count // 2, 2), ["data", "model"], names)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*kernel"] = ("data", "model")
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="data")
    )
keras.utils.set_random_seed(0)
model = keras.Sequential(
    [keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dropout(0.5), keras.layers.Dense(4)]
)
model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse")
model.optimizer.build(model.trainable_variables)

X = np.random.default_rng(0).normal(size=(4, 8, 8)).astype("float32")
data = grain.MapDataset.range(4).map(lambda i: (X[i], X[i][:, :4]))


class Values(keras.callbacks.Callback):
    """Writes all variables, as they are when an epoch begins or the training ends."""

    def on_epoch_begin(self, epoch, logs=None):
        self.write(f"found by {count}")

    def on_train_end(self, logs=None):
        self.write(f"left by {count}")

    def write(self, name):
        variables = [*model.variables, *model.optimizer.variables]
        kept = {str(i): keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}
        np.savez(directory.parent / f"{name}.npz", **kept)


checkpoints = Checkpoints(directory, every=3)
model.fit(checkpoints.data(data), epochs=epochs, callbacks=[checkpoints, Values()], verbose=0)
if count > 1:
    for variable in (model.layers[0].kernel, model.optimizer.variables[2]):
        assert not variable.value.sharding.is_fully_replicated
