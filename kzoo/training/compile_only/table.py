"""A report of `compile_only` as a table for the terminal."""


def table(report):
    """A report of `compile_only` as a `rich.table.Table`."""
    from rich.table import Table

    mesh = " × ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    title = (
        f"{report['preset']}: {report['parameters']:,} parameters, {report['dtype']}, batch "
        f"{report['batch']} × {report['time']}, {report['topology']} ({mesh})"
    )
    lines = Table("", box=None, title=title, title_justify="left", show_header=False)
    for part, program in report["programs"].items():
        lines.add_row(part, "", style="bold")
        for name, text in _lines(program):
            lines.add_row(f"  {name}", text)
    return lines


def _lines(program):
    memory, flops = program["memory"], program["flops"]
    total = f"{in_units(memory['total'])} of {in_units(memory['chip'])} a chip"
    if not program["fits"]:
        yield "memory", f"{total}: {in_units(program['over'])} too much for what XLA has of it"
        for suggestion in program["suggestions"]:
            yield "would help", suggestion
    else:
        parts = ("arguments", "temporaries", "outputs", "donated", "code")
        parts = ", ".join(f"{name} {in_units(memory[name])}" for name in parts)
        yield "memory", f"{total}: {parts}"
    compiled = f"; XLA counts {flops['compiled']:.3g} a chip" if "compiled" in flops else ""
    yield "FLOPs", f"{flops['needed']:.3g} needed, {flops['a_chip']:.3g} a chip{compiled}"
    yield "at the chips' peak", f"{flops['seconds'] * 1e3:.3g} ms, which no step can beat"
    if not program["fits"]:
        return
    for kind, found in program["collectives"].items():
        yield kind, f"{found['count']} of {in_units(found['bytes'])} together"
    by_kernel = {}
    for path, found in program["attention"].items():
        by_kernel.setdefault((found["kernel"], found["calls"]), []).append(path)
    for (kernel, calls), paths in by_kernel.items():
        layers = paths[0] if len(paths) == 1 else f"{len(paths)} layers ({paths[0]}, …)"
        yield "attention", f"{kernel}, {calls} Pallas calls each: {layers}"
    yield "compiled in", f"{program['seconds']['compile']} s"


def in_units(count):
    """A number of bytes as text, such as "1.5 GiB"."""
    unit = max(i for i in range(4) if i == 0 or count >= 1024**i)
    return f"{count / 1024**unit:.3g} {('B', 'KiB', 'MiB', 'GiB')[unit]}"
