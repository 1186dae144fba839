"""Progress of a training run on the screen."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """Progress bars on standard error: collection, then training with its losses; alarms stay on the screen.

    ``shown`` is a format string for the latest evaluation's figures.
    """

    def __init__(self, steps: int, *, shown: str, episodes: int | None = None) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=14),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
        )
        self._collecting = self._bar.add_task("collecting", total=episodes, visible=False, figures="")
        self._training = self._bar.add_task("training", total=steps, start=False, figures="")
        self._started = False
        self._shown, self._evaluated = shown, ""

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *details: Any) -> None:
        self._bar.stop()

    def collected(self, count: int) -> None:
        """``count`` more episodes were collected."""
        self._bar.update(self._collecting, advance=count, visible=True)

    def progress(self, step: int, losses: dict[str, float]) -> None:
        """After a step."""
        if not self._started:  # a resumed run does not begin at 0; its speed is measured from here
            self._started = True
            self._bar.update(self._training, completed=step - 1)
            self._bar.start_task(self._training)
        shown = f"loss {losses['total']:.2f} prediction {losses['prediction']:.3f}{self._evaluated}"
        self._bar.update(self._training, completed=step, figures=shown)

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """After an evaluation."""
        self._evaluated = " " + self._shown.format(**figures)

    def alarm(self, step: int, message: str) -> None:
        """Leave an alarm on the screen."""
        self._bar.console.print(f"[bold red]collapse alarm[/] at step {step}: {escape(message)}")
