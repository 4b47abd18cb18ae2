"""Train on several GPUs with torch, a process for each.

    torchrun --nproc_per_node 2 examples/torchrun.py            # without GPUs it takes CPUs
    torchrun --nproc_per_node 8 examples/torchrun.py --preset gpt_small --batch 64 --steps 2000

Keras distributes models on JAX only: on torch `fit` would train a model of its own in each process.
So the loop is written out here, around torch's DistributedDataParallel, which averages the
gradients. Losses are those of one process.
"""

import argparse
import os

os.environ["KERAS_BACKEND"] = "torch"  # before anything imports Keras

import keras
import torch
from torch import distributed

import kzoo


def train(preset, text, batch, steps):
    """Yields each step's loss, in nats per scored token of the whole batch."""
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    model = kzoo.presets.load(preset)  # the same initial values everywhere: they are seeded
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    splits = kzoo.data.load(text, model, batch_size=batch)
    for x, y, weight in splits.train.repeat()[:steps]:  # the same batches everywhere
        scored = weight.sum()
        x, y, weight = keras.tree.map_structure(
            lambda array: keras.ops.convert_to_tensor(array[rank::processes]), (x, y, weight)
        )
        nats = keras.ops.sparse_categorical_crossentropy(y, parallel(x), from_logits=True)
        loss = (weight * nats).sum() / scored
        parallel.zero_grad()
        # Times the number of processes, since their gradients are averaged, and we need the sum.
        (loss * processes).backward()
        with torch.no_grad():
            gradients = [variable.value.grad for variable in model.trainable_variables]
            model.optimizer.apply(gradients, model.trainable_variables)
            distributed.all_reduce(loss)
        yield loss.item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gpt_nano")
    parser.add_argument("--text", default="pydoc", help="a text file or a folder of them")
    parser.add_argument("--batch", type=int, default=16, help="examples of all processes together")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()

    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if gpus else "gloo")
    for step, loss in enumerate(train(**vars(options)), 1):
        if distributed.get_rank() == 0:
            print(f"step {step}: {loss:.6f} nats", flush=True)
    distributed.destroy_process_group()
