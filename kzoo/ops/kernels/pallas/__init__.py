"""Kernels of linear attention for TPUs, in Pallas."""
