"""Wall time of a call, the time that JAX spends compiling kept apart; and progress on stderr."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping

import jax.monitoring
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

# Tracing, lowering and compiling report their durations under this name.
_COMPILE = "/jax/core/compile/"
# Where stderr is no terminal, a long run says how far it is this often, in seconds.
_EVERY = 10.0


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


class Meter:
    """How far the decoding of a long list is: a bar on a terminal, else a line now and then.

    Rates and the time left count the seconds of decoding, not of compiling. Tokens are those of
    answers, before the end token.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        """Args: what goes on; prompts of the list; how many of them an earlier run has done."""
        self._what, self._total, self._before = what, total, done
        self._prompts = self._tokens = self._nfe = 0
        self._seconds = self._compiling = 0.0
        self._sums: Counter[str] = Counter()
        self._console = Console(stderr=True)

    def __enter__(self) -> Meter:
        self._start = self._said = time.perf_counter()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = SpinnerColumn(), BarColumn(20), TextColumn("{task.description}")
            self._bar = Progress(
                *columns,
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
                redirect_stdout=False,  # rich would send results to stderr
            )
            self._bar.start()
            self._task = self._bar.add_task(
                f"{self._what} ...", total=self._total, completed=self._before
            )
        else:
            self._say(f"{self._what} ...")
        return self

    def add(
        self,
        *,
        prompts: int,
        tokens: int,
        nfe: int,
        seconds: float,
        compiling: float,
        sums: Mapping[str, float] | None = None,
    ) -> None:
        """Count a batch: its prompts, answer tokens, forwards of all rows, and seconds; `sums` are
        over its prompts too, and shown as means by their names."""
        self._sums.update(sums or {})
        self._prompts += prompts
        self._tokens += tokens
        self._nfe += nfe
        self._seconds += seconds
        self._compiling += compiling
        done, now = self._before + self._prompts, time.perf_counter()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=self._state())
        elif done < self._total and now - self._said >= _EVERY:
            self._said = now
            self._say(self._state())

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the bar off the terminal while others write there."""
        if self._bar is not None:
            self._bar.stop()
        yield
        if self._bar is not None:
            self._bar.start()

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._prompts:
            elapsed = time.perf_counter() - self._start
            self._say(f"{self._what}: {elapsed:.1f} s, {self._state()}")

    def _state(self) -> str:
        rate = self._prompts / self._seconds
        parts = [
            f"{rate:.3g} prompts/s",
            f"{self._tokens / self._seconds:,.0f} tokens/s",
            f"mean NFE {self._nfe / self._prompts:.1f}",
            *(f"mean {name} {value / self._prompts:.3g}" for name, value in self._sums.items()),
        ]
        if self._compiling >= 0.05:
            parts.append(f"{self._compiling:.1f} s compiling")
        if left := self._total - self._before - self._prompts:
            done = f"{self._total - left} of {self._total} prompts"
            parts = [done, f"{duration(left / rate)} left", *parts]
        return ", ".join(parts)

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def duration(seconds: float) -> str:
    """Such as 42 s, 3:05 or 2:03:05."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
