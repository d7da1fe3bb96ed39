"""Wall time of a call, the time that JAX spends compiling kept apart; and progress on stderr."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import jax.monitoring
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

# Tracing, lowering and compiling report their durations under this name.
_COMPILE = "/jax/core/compile/"


class Clock:
    """Seconds of a `with` block, in all and compiling; complete when the block has ended.

    Work that is still queued on a device counts only if the block waits for it.
    """

    total: float = 0.0
    compiling: float = 0.0

    def __enter__(self) -> Clock:
        self._spans: list[tuple[float, float]] = []
        self._start = time.perf_counter()
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *exc: object) -> None:
        self.total = time.perf_counter() - self._start
        jax.monitoring.unregister_event_duration_listener(self._listen)
        # Tracing nests (a jitted function calls others), so the spans are united, not summed.
        end = self._start
        for first, last in sorted(self._spans):
            self.compiling += max(0.0, last - max(first, end))
            end = max(end, last)

    @property
    def running(self) -> float:
        """Everything but compiling."""
        return self.total - self.compiling

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.startswith(_COMPILE):
            now = time.perf_counter()
            self._spans.append((now - duration_secs, now))


@contextlib.contextmanager
def progress(what: str) -> Iterator[Clock]:
    """Say on stderr what goes on (on a terminal with a running clock), then how long it took."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with Progress(*columns, console=console, transient=True) as bar, Clock() as clock:
            bar.add_task(f"{what} ...")
            yield clock
    else:
        console.print(f"{what} ...", soft_wrap=True, highlight=False, markup=False)
        with Clock() as clock:
            yield clock
    seconds = f"{clock.total:.1f} s"
    if clock.compiling >= 0.05:
        seconds += f", {clock.compiling:.1f} s of it compiling"
    console.print(f"{what}: {seconds}", soft_wrap=True, highlight=False, markup=False)
