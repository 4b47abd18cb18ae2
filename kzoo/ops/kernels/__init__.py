"""Kernels that need one backend by name: what `keras.ops` cannot say, or says slowly."""
