"""The report as a table."""

from typing import Any

from rich.table import Table

STYLES = {"ok": "green", "running": "yellow", "refused": "dim"}
WRONG = "bold red"


def table(report: dict[str, Any]) -> Table:
    """Every check with its error, what it may be, and the time that it took.

    Args:
        report: what `kzoo.doctor.examine` returned.

    Returns:
        A `rich.table.Table`. Combinations that kzoo refuses are left out.
    """
    made = Table(box=None, pad_edge=False)
    for column in ("check", "of", "at", "dtype"):
        made.add_column(column, overflow="fold")
    for column in ("error", "at most", "seconds"):
        made.add_column(column, justify="right", no_wrap=True)
    made.add_column("", no_wrap=True)
    made.add_column("", overflow="fold")
    for row in report["rows"]:
        if row["result"] == "refused":
            continue
        numbers = (
            "" if row[name] is None else f"{row[name]:.1e}" for name in ("error", "tolerance")
        )
        words = (row[name] for name in ("group", "subject", "case", "dtype"))
        style = STYLES.get(row["result"], WRONG)
        result = f"[{style}]{row['result']}[/]"
        made.add_row(*words, *numbers, f"{row['seconds']:.1f}", result, _plain(row["note"]))
    return made


def _plain(text):
    from rich.markup import escape

    return escape(text)


def summary(report: dict[str, Any]) -> str:
    """What was found, in a sentence or two."""
    about, rows = report["machine"], report["rows"]
    ran = [row for row in rows if row["result"] != "refused"]
    devices = f"{len(about['devices'])} × {about['devices'][0]}"
    found = f"{report['off']} of {len(ran)} checks found something wrong" if report["off"] else ""
    found = found or f"all {len(ran)} checks are well"
    return f"{about['backend']} on {devices}: {found}, in {report['seconds']:.0f} s"
