"""Rounds in turn, what is said of them, and contestants in processes of their own."""

import statistics
from collections.abc import Iterator

import bench_contestants as contestants
import pytest
from hypothesis import given, strategies

from fastcifar.bench.measure import (
    Measured,
    Opened,
    Released,
    RunnerError,
    RunnerMissingError,
    Sample,
    Spread,
    interleave,
    share,
    turns,
)
from fastcifar.bench.workers import Entry, Place, Worker


class Fake:
    """A runner that writes down what it is asked, and fails where told."""

    def __init__(self, key: str, log: list[str], fails_at: str = "") -> None:
        self.key, self._log, self._fails_at = key, log, fails_at

    def _do(self, what: str) -> None:
        self._log.append(f"{what} {self.key}")
        if what == self._fails_at:
            raise RunnerError(f"{self.key} broke")

    def prepare(self, task: str) -> Opened:
        self._do("prepare")
        return Opened(1.0)

    def run(self, task: str, seconds: float) -> Sample:
        self._do("run")
        return Sample(6, 2 * seconds)

    def release(self, task: str) -> Released:
        self._do("release")
        return Released(1.0, 1.0)


def no_problem(key: str, error: RunnerError) -> None:
    raise AssertionError(f"{key}: {error}")


def test_contestants_take_turns_round_by_round() -> None:
    assert list(turns(["a", "b"], 3)) == ["a", "b", "a", "b", "a", "b"]


def test_warm_up_comes_before_every_round_and_rounds_interleave() -> None:
    log: list[str] = []
    runners = [Fake("a", log), Fake("b", log)]
    measured = interleave(runners, "task", rounds=2, round_s=0.5, on_problem=no_problem)
    assert log == ["prepare a", "prepare b", "run a", "run b", "run a", "run b", "release a", "release b"]
    assert [len(one.samples) for one in measured.values()] == [2, 2]
    assert measured["a"].rate == Spread(6.0, 6.0, 6.0, 2)


@pytest.mark.parametrize("fails_at", ["prepare", "run", "release"])
def test_one_that_fails_is_told_and_the_others_go_on(fails_at: str) -> None:
    problems: list[str] = []
    runners = [Fake("a", [], fails_at), Fake("b", [])]
    measured = interleave(
        runners, "task", rounds=2, round_s=0.1, on_problem=lambda key, error: problems.append(f"{key}: {error}")
    )
    assert problems == ["a: a broke"]
    assert list(measured) == ["b"]
    assert len(measured["b"].samples) == 2


@given(strategies.lists(strategies.floats(1e-3, 1e9), min_size=1, max_size=30))
def test_quartiles_enclose_the_median_and_lie_within_the_values(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.median == pytest.approx(statistics.median(values))
    assert min(values) * (1 - 1e-9) <= spread.q1 <= spread.median * (1 + 1e-9)
    assert spread.median * (1 - 1e-9) <= spread.q3 <= max(values) * (1 + 1e-9)
    assert spread.num == len(values)


def test_quartiles_are_those_of_numpy() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0]) == Spread(2.5, 1.75, 3.25, 4)
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_a_share_compares_rounds_with_rounds() -> None:
    # The machine is three times as slow in the second round: that halves neither.
    ours = Measured(Opened(0), [Sample(10, 1), Sample(10, 3), Sample(10, 1)])
    bound = Measured(Opened(0), [Sample(20, 1), Sample(20, 3), Sample(20, 1)])
    assert share(ours, bound) == 0.5
    assert share(ours, bound, factor=4) == 2.0


def test_compile_time_is_what_only_the_first_time_costs() -> None:
    assert Opened(5.0, 2.0).compile_s == 3.0
    assert Opened(1.0, 2.0).compile_s == 0.0
    assert Opened(5.0).compile_s is None


@pytest.fixture
def place() -> Place:
    return Place(threads=1, keep_freed_memory=False)


@pytest.fixture
def workers(place: Place) -> Iterator[list[Worker]]:
    made: list[Worker] = []
    yield made
    for worker in made:
        worker.close()


def worker(made: list[Worker], place: Place, kind: type, role: str = "ours", **arguments: object) -> Worker:
    made.append(Worker(Entry(kind.__name__, kind, arguments, role), place))
    return made[-1]


def test_each_contestant_has_a_process_threads_and_memory_of_its_own(
    workers: list[Worker], place: Place, capfd: pytest.CaptureFixture
) -> None:
    big, small = (worker(workers, place, contestants.Sleeper, megabytes=megabytes) for megabytes in (120, 0))
    samples, memory = [], []
    for one in (big, small):
        assert one.prepare("task").cold_s > 0
        samples.append(one.run("task", 0.01))
        memory.append(one.release("task"))
    assert samples[0].extra["process_id"] != samples[1].extra["process_id"]
    assert [sample.extra["threads"] for sample in samples] == [1, 1]
    assert all(0.01 <= sample.seconds < 5 for sample in samples)
    assert memory[0].own_memory_mb > 100
    assert memory[1].own_memory_mb < 60
    # What a library prints goes to stderr: stdout's last line is the command's JSON.
    assert "noise" not in capfd.readouterr().out


def test_opening_twice_tells_the_first_time_apart(workers: list[Worker], place: Place) -> None:
    entry = Entry("sleeper", contestants.Sleeper, open_twice=True)
    workers.append(Worker(entry, place))
    assert workers[0].prepare("task").warm_s is not None


def test_what_breaks_dies_hangs_or_is_missing_is_one_line(
    workers: list[Worker], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks, dies = worker(workers, place, contestants.Breaks), worker(workers, place, contestants.Dies)
    for one in (breaks, dies):
        one.prepare("task")
    with pytest.raises(RunnerError, match="Breaks: ArithmeticError: two and two are five"):
        breaks.run("task", 0.01)
    with pytest.raises(RunnerError, match="Dies: its process ended with exit code 7"):
        dies.run("task", 0.01)
    with pytest.raises(RunnerMissingError, match="pip install nosuchthing"):
        worker(workers, place, contestants.Lacks).prepare("task")
    # Of a peer, any import that fails means that it is not installed; of ours, it is a mistake.
    with pytest.raises(RunnerError, match="Misspelt: ImportError: cannot import name 'augmnt'"):
        worker(workers, place, contestants.Misspelt).prepare("task")
    with pytest.raises(RunnerMissingError, match="cannot import name"):
        worker(workers, place, contestants.Misspelt, role="peer").prepare("task")
    slow = worker(workers, place, contestants.Sleeper)
    slow.prepare("task")
    process = slow._process
    monkeypatch.setattr("fastcifar.bench.workers.ANSWER_LIMIT_S", 0.1)
    with pytest.raises(RunnerError, match=r"Sleeper: no answer to run in 0\.1 s"):
        slow.run("task", 60)
    # It must not go on beside the others.
    assert not process.is_alive()
    monkeypatch.undo()
    # One that raised is still there to be asked again.
    assert breaks.release("task").peak_memory_mb > 0
