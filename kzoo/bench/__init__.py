"""Timings of attention, training and generation, compared with other libraries in one run."""

import kzoo.load_keras  # noqa: F401
from kzoo.bench.attention import bench_attention
from kzoo.bench.data import bench_data
from kzoo.bench.generate import bench_generate
from kzoo.bench.show import plot, tables
from kzoo.bench.train import bench_train

__all__ = ["bench_attention", "bench_data", "bench_generate", "bench_train", "plot", "tables"]
