"""How a figure comes about: rounds in turn (A B A B), and what is said of them: median and quartiles."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Sample:
    """What one round gave: units of work (images, bytes, operations) done in so many seconds."""

    units: float
    seconds: float
    extra: dict[str, float] = field(default_factory=dict)
    """Other figures of the same round, by name with their unit (`first_batch_ms`)."""

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.units / self.seconds


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a figure over the rounds."""

    median: float
    q1: float
    q3: float
    num: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value; quartiles as NumPy's default (linear between order statistics)."""
        if not values:
            raise ValueError("Spread: got no values, takes at least one")
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3, len(values))


@dataclass(frozen=True)
class Opened:
    """What it took to get a contestant going."""

    cold_s: float
    """Seconds from nothing but torch in the process to the first result: imports, opening, compiling."""
    warm_s: float | None = None
    """Seconds for the same again in the same process; None where that was not asked for."""

    @property
    def compile_s(self) -> float | None:
        """What only the first time in a process costs: compiling, or reading compiled code, and imports."""
        return None if self.warm_s is None else max(0.0, self.cold_s - self.warm_s)


@dataclass(frozen=True)
class Released:
    """What a contestant had needed when it was done."""

    peak_memory_mb: float
    """Largest resident memory of its process, with what its own worker processes have for themselves."""
    own_memory_mb: float
    """The same less what the process had before it was opened."""
    gpu_memory_mb: float = 0.0
    """Most memory that torch held on the GPU."""


class Runner(Protocol):
    """A contestant as the rounds see it: in a process of its own, or a fake one in a test."""

    key: str

    def prepare(self, task: str) -> Opened:
        """Get going on a task, up to its first result."""
        ...

    def run(self, task: str, seconds: float) -> Sample:
        """One round: work for about so many seconds."""
        ...

    def release(self, task: str) -> Released:
        """Let go of what the task needed."""
        ...


class RunnerError(RuntimeError):
    """A contestant failed; the others go on."""


class RunnerMissingError(RunnerError):
    """A contestant's package is not here; the message has the line that installs it."""


@dataclass
class Measured:
    """All that the rounds of one contestant on one task gave."""

    opened: Opened
    samples: list[Sample] = field(default_factory=list)
    released: Released | None = None

    @property
    def rate(self) -> Spread:
        """Units a second over the rounds."""
        return Spread.of([sample.rate for sample in self.samples])

    def extra(self, name: str) -> Spread:
        """Another figure of the rounds, by name."""
        return Spread.of([sample.extra[name] for sample in self.samples])

    def extra_names(self) -> list[str]:
        """Names of the other figures."""
        return list(self.samples[0].extra) if self.samples else []


def turns(keys: Sequence[str], rounds: int) -> Iterator[str]:
    """Whose turn it is: every contestant once a round and always in the same order."""
    for _ in range(rounds):
        yield from keys


def interleave(
    runners: Sequence[Runner],
    task: str,
    *,
    rounds: int,
    round_s: float,
    on_problem: Callable[[str, RunnerError], None],
) -> dict[str, Measured]:
    """Measure contestants on a task: prepared one after another, then in turn, `rounds` times about `round_s` seconds.

    A contestant that fails is told to `on_problem` and leaves; the result holds those that went all the way.
    """
    by_key = {runner.key: runner for runner in runners}
    measured: dict[str, Measured] = {}
    for key, runner in by_key.items():
        try:
            measured[key] = Measured(runner.prepare(task))
        except RunnerError as error:
            on_problem(key, error)
    for key in turns(list(measured), rounds):
        if key not in measured:
            continue
        try:
            measured[key].samples.append(by_key[key].run(task, round_s))
        except RunnerError as error:
            on_problem(key, error)
            del measured[key]
    for key in list(measured):
        try:
            measured[key].released = by_key[key].release(task)
        except RunnerError as error:
            on_problem(key, error)
            del measured[key]
    return measured


def share(of: Measured, bound: Measured, *, factor: float = 1.0) -> float:
    """Median over the rounds of `of`'s rate times `factor`, over the bound's rate in the same round.

    Rounds go in pairs: what disturbs the machine for a while disturbs both sides.
    """
    pairs = zip(of.samples, bound.samples, strict=False)
    return statistics.median(sample.rate * factor / limit.rate for sample, limit in pairs)
