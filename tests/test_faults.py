"""The fault campaign at a small size: every reader, a few moments of SIGKILL, a few runs in one process."""

import os
import random
from pathlib import Path

import pytest
from cifar_files import make
from faults.edits import Choices, Mutator, edited_bytes, edited_tree
from faults.kill import SETTINGS, ConvertCase, EvaluateCase, TrainCase
from faults.load import runs_at_once, short_runs
from faults.report import Finding, Report, Row
from faults.shard import Board, judge
from faults.targets import TARGETS, Target, Unpickle
from hypothesis import given, settings
from hypothesis import strategies as st


class Unguarded:
    """In the place of the audit hook, which no process gets rid of again."""

    on, seen = False, ""


LIGHT = [target for target in TARGETS if not target.name.startswith("pipeline")]


@pytest.mark.parametrize("target", LIGHT, ids=lambda target: target.name)
def test_every_reader_answers_or_refuses(target: type[Target], tmp_path: Path) -> None:
    reader = target(tmp_path)
    seeds = reader.seeds()
    mutator = Mutator(seeds, seed=1)
    inputs = [*random.Random(0).sample(seeds, min(40, len(seeds))), *(mutator.next() for _ in range(60))]
    outcomes = [judge(reader, Unguarded(), data) for data in inputs]  # type: ignore[arg-type]
    found = [outcome[1:] for outcome in outcomes if outcome[0] == "found"]
    assert not found, found[0]
    assert {"refused"} <= {outcome[0] for outcome in outcomes}


@pytest.fixture(scope="module", params=LIGHT, ids=lambda target: target.name)
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Target:
    return request.param(tmp_path_factory.mktemp(request.param.name))


@settings(max_examples=40)
@given(data=st.data())
def test_every_reader_answers_or_refuses_what_hypothesis_makes(reader: Target, data: st.DataObject) -> None:
    good = data.draw(st.sampled_from(reader.seeds()))
    at = data.draw(st.integers(0, len(good)))
    other = data.draw(st.binary(max_size=40))
    content = data.draw(st.sampled_from([good[:at] + other + good[at + len(other) :], good[:at] + other, other]))
    outcome, what, trace = judge(reader, Unguarded(), content)  # type: ignore[arg-type]
    assert outcome in ("right", "refused"), (what, trace)


def test_a_wrong_reader_is_found(tmp_path: Path) -> None:
    class Wrong(Unpickle):
        def read(self, data: bytes) -> None:
            if len(data) > 3:
                raise KeyError("step")
            raise ValueError("no file is named")

    reader = Wrong(tmp_path)
    assert judge(reader, Unguarded(), b"abcd")[:2] == ("found", "KeyError: 'step'")  # type: ignore[arg-type]
    assert judge(reader, Unguarded(), b"")[1].startswith("unclear error")  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_edits_are_made_of_any_bytes(data: bytes) -> None:
    good = {"a": [1, 2.5, "x", {"b": None}], "c": {"d": [True]}}
    edited_tree(good, Choices(data))
    assert good == {"a": [1, 2.5, "x", {"b": None}], "c": {"d": [True]}}
    edited_bytes(b"good bytes" * 40, Choices(data))
    assert edited_bytes(b"good", Choices(b"")) == b"good"


def test_the_same_seed_makes_the_same_inputs() -> None:
    first, second = (Mutator([b"abc", b"defg"], 7) for _ in range(2))
    assert [first.next() for _ in range(50)] == [second.next() for _ in range(50)]


def test_a_board_outlives_its_process(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "board")
    if not os.fork():
        other = Board(tmp_path / "board")
        other.current = b"the input under way"
        other["inputs"] += 5
        os._exit(9)
    os.wait()
    assert (board["inputs"], board.current) == (5, b"the input under way")


def test_a_report_counts_and_shows_findings(tmp_path: Path) -> None:
    report = Report(0, 1.0, "fuzzing is blind")
    report.rows += [Row("fuzz", "tar", 10, 4, 5, 1), Row("fuzz", "index", 5, 0, 5)]
    report.findings.append(Finding("fuzz", "tar", "KeyError", "tar-1.input"))
    sums = report.to_json()["faults"]
    assert sums == {"fuzz": {"tried": 15, "right": 4, "refused": 10, "findings": 1}}
    assert "python -m faults --replay tar-1.input" in report.render()
    assert report.save(tmp_path).exists()


KILLS = {"train": ("os.rename", 5), "convert": ("os.rename", 2), "evaluate": ("os.rename", 1)}


def test_what_is_killed_and_run_again_ends_in_the_same_bits(tmp_path: Path) -> None:
    data, other = make(tmp_path / "data", num_test=20).path, make(tmp_path / "other", num_test=10, seed=1).path
    assert "data.validation=0.2" in SETTINGS
    train = TrainCase(tmp_path / "train", "resident", data)
    convert = ConvertCase(tmp_path / "convert", "npy", data, other)
    evaluate = EvaluateCase(tmp_path / "evaluate", train.home / "whole" / "out")
    for case in (train, convert, evaluate):
        assert case.prepare() == ""
        where, wrong = case.kill_and_go_on(0, KILLS[case.home.name])
        assert not wrong, (case.what, where, wrong)
        assert "after its end" not in where


def test_short_runs_in_one_process_leave_nothing_behind() -> None:
    done, wrong, _, _ = short_runs(8)
    assert done == 8
    assert not wrong


def test_runs_at_once_share_a_cache() -> None:
    assert runs_at_once(["resident", "resident"]) == ""
