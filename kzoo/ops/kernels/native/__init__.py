"""Attention in C++ for JAX on a CPU, where XLA gives small products to one core.

Softmax in blocks and linear attention in chunks, each forward and backward one call that shares
out heads over XLA's threads. q, k and v stay [batch, time, heads, dim]. Memory beside the results
is that of a few blocks for each thread. Derivatives other than the gradient, as forward mode and
the gradient of a gradient, come from dense forms in JAX's operations: memory quadratic in time.
"""
