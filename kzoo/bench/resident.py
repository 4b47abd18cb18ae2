"""Torch's causal attention, and its peak memory in a process of its own.

Run as a file it imports torch alone, reads its settings as JSON from its one argument, and prints
by how many bytes the resident set grew at most; null if the system does not report it.
"""

import json
import sys
from pathlib import Path


def sdpa(torch, q, k, v, cotangent):
    """Output and gradients; all [batch, time, heads, dim], as a model's projections give them."""
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    attend = torch.nn.functional.scaled_dot_product_attention
    out = attend(*heads_first, is_causal=True).transpose(1, 2)
    return out, torch.autograd.grad(out, (q, k, v), cotangent)


def _main(settings):
    import torch

    torch.set_num_threads(settings["threads"])

    def run(time):
        shape = (settings["batch"], time, settings["heads"], settings["dim"])
        kwargs = {"dtype": getattr(torch, settings["dtype"])}
        q, k, v, cotangent = (torch.randn(shape, **kwargs, requires_grad=i < 3) for i in range(4))
        return sdpa(torch, q, k, v, cotangent)

    run(1)  # so that libraries are loaded before memory is measured
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before = _status("VmRSS")
    except OSError:
        print("null")
        return
    kept = run(settings["time"])
    print(_status("VmHWM") - before)
    del kept


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
