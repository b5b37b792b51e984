"""Gates: any figure can fail a run, and one that was not measured does not pass."""

import pytest

from fastcifar.bench import gates
from fastcifar.bench.gates import Gate

FIGURES = {"kernels.numba.crop_flip.bf16.images_s": 1.4e6, "start.resident.first_batch.seconds": 0.8}
RATE, WAIT = FIGURES


def test_both_options_are_read() -> None:
    assert gates.parse([f"{RATE}=1_500_000", "x=1e3"], [f"{WAIT}=1.0"]) == [
        Gate(RATE, 1.5e6, True),
        Gate("x", 1000.0, True),
        Gate(WAIT, 1.0, False),
    ]


@pytest.mark.parametrize("text", ["", "name", "=3", "name=", "name=fast", "name=nan", "name=inf"])
def test_what_is_no_gate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"--assert-max: got .*, takes NAME=VALUE, such as"):
        gates.parse([], [text])


def test_a_figure_of_another_benchmark_is_refused_before_anything_is_measured() -> None:
    gates.check_measured(gates.parse([f"{RATE}=1"], [f"{WAIT}=1"]), ["kernels", "start"])
    with pytest.raises(ValueError, match=r"^--assert-min: got 'kernel.x', takes a figure .* with kernels., start.$"):
        gates.check_measured(gates.parse(["kernel.x=1"], []), ["kernels", "start"])
    with pytest.raises(ValueError, match=r"^--assert-max: got 'start.resident.*', takes a figure .* with kernels.$"):
        gates.check_measured(gates.parse([], [f"{WAIT}=1"]), ["kernels"])


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        (Gate(RATE, 1.4e6, True), True),
        (Gate(RATE, 1.5e6, True), False),
        (Gate(RATE, 1.4e6, False), True),
        (Gate(RATE, 1.3e6, False), False),
        (Gate("loaders.resident.images_s", 0.0, True), False),
        (Gate("loaders.resident.images_s", 0.0, False), False),
    ],
)
def test_a_limit_itself_passes_and_what_was_not_measured_never_does(gate: Gate, passed: bool) -> None:
    assert [outcome.passed for outcome in gates.judge([gate], FIGURES)] == [passed]


def test_a_failed_gate_says_the_figure_what_it_was_and_what_it_takes() -> None:
    outcomes = gates.judge(gates.parse([f"{RATE}=1.5e6", "kernels.numba.crop_flip.bf16.image_s=1"], []), FIGURES)
    assert outcomes[0].sentence == f"gate {RATE}: got 1.4e+06, takes at least 1.5e+06"
    assert f"not measured, takes at least 1; measured was {RATE}" in outcomes[1].sentence
    assert outcomes[0].to_json() == {"name": RATE, "min": 1.5e6, "value": 1.4e6, "passed": False}
