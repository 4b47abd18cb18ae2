"""Timings of attention and of training, beside peers and in one run."""

from kzoo.bench.attention import bench_attention
from kzoo.bench.show import plot, tables
from kzoo.bench.train import bench_train

__all__ = ["bench_attention", "bench_train", "plot", "tables"]
