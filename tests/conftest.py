import os

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # or libtpu, which compiles here, looks for a TPU
# Tests compile much and run little: without optimisation a step compiles in a fifth of the time,
# and in one piece, since two processes share the processors, in 0.9 of that.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1",
)
# Commands that tests start keep no compiled programs in the home of who runs them.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")
