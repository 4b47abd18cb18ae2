"""Progress of a study on standard error, and the file that its records go to."""

import contextlib
import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kzoo.studies.records import append


class Bars(contextlib.AbstractContextManager):
    """Progress bars: runs of the study, and steps of each run that is under way.

    Where standard error is no terminal, such as a file, a line for each run that is finished.
    """

    def __init__(self, shown, runs, finished):
        console = Console(stderr=True)
        self.lines = shown and not console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not shown or self.lines,
        )
        self.runs = self.progress.add_task("runs", total=runs, completed=finished, note="")
        self.under_way = {}

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *error):
        self.progress.stop()

    def listener(self, steps, directory, file, done, complete, clock):
        """What hears the runs: it shows them, and keeps each record in a file and in `done`.

        Args:
            steps: function of a run's name that tells its steps.
            directory, file: where the records go.
            done: dict of the records by name, which grows.
            complete: function of a run's record that returns it with all that it is to say.
            clock: a `kzoo.studies.clock.Clock`, which ends the study when its time is over.
        """

        def say(kind, name, *what):
            if kind == "record":
                done[name] = append(directory, complete(what[0]), file)
                self.finished(name)
            elif kind == "begin":
                self.begin(name, steps(name))
            else:
                self.step(name, *what)
            clock.hear(kind, name)

        return say

    def expect(self, more):
        """So many runs more than was said."""
        self.progress.update(self.runs, total=self._of_runs().total + more)

    def _of_runs(self):
        return next(task for task in self.progress.tasks if task.id == self.runs)

    def begin(self, name, steps):
        self.under_way[name] = self.progress.add_task("steps", total=steps, note=name)

    def step(self, name, step, loss):
        task, note = self.under_way[name], f"{name}, loss {loss:.3f}"
        self.progress.update(task, completed=step, note=note)

    def finished(self, name):
        self.progress.remove_task(self.under_way.pop(name))
        self.progress.advance(self.runs)
        if self.lines:
            runs = self._of_runs()
            print(f"kzoo: {runs.completed} of {runs.total} runs: {name}", file=sys.stderr)
