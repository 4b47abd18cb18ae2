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
    compiled = f"; the program has {flops['compiled']:.3g}" if "compiled" in flops else ""
    yield "FLOPs", f"{flops['needed']:.3g} needed, {flops['a_chip']:.3g} a chip{compiled}"
    yield "at the chips' peak", f"{flops['seconds'] * 1e3:.3g} ms, which no step can beat"
    if not program["fits"]:
        return
    moved, least = in_units(program["bytes"]), program["roofline_seconds"]
    yield "at the roofline", f"{least * 1e3:.3g} ms, with {moved} to and from memory"
    for kind, found in program["collectives"].items():
        yield kind, f"{found['count']} of {in_units(found['bytes'])} together"
    by_kernel = {}
    for path, found in program["attention"].items():
        alone = tuple(found.get("alone", {}).items())
        by_kernel.setdefault((found["kernel"], found["calls"], alone), []).append(path)
    for (kernel, calls, alone), paths in by_kernel.items():
        layers = paths[0] if len(paths) == 1 else f"{len(paths)} layers ({paths[0]}, …)"
        yield "attention", f"{kernel}, {calls} Pallas calls each: {layers}"
        if alone:
            yield "  one alone", _alone(dict(alone))
    yield "compiled in", f"{program['seconds']['compile']} s"


def _alone(cost):
    """What one attention takes on a chip, its projections aside."""
    least = f"{in_units(cost['least_bytes'])} at least"
    if not cost["fits"]:
        return f"{least}; does not fit into a chip without the others"
    times = cost["bytes"] / cost["least_bytes"]
    return (
        f"moves {in_units(cost['bytes'])}, {times:.2f} times its {least}; "
        f"{cost['roofline_seconds'] * 1e3:.3g} ms at the roofline; "
        f"temporaries {in_units(cost['temporaries'])}"
    )


def in_units(count):
    """A number of bytes as text, such as "1.5 GiB"."""
    unit = max(i for i in range(4) if i == 0 or count >= 1024**i)
    return f"{count / 1024**unit:.3g} {('B', 'KiB', 'MiB', 'GiB')[unit]}"
