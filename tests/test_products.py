"""Products whose factors are rounded to 8 bits: exact where nothing is lost, else near what float64 has."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import rms_error
from torch import Tensor

from fastcifar.kernels import products
from fastcifar.kernels.products import BLOCK, MIN_ROWS, Panels, by_columns, by_panels

pytestmark = pytest.mark.skipif(not products.HAS_UNITS, reason="takes a CPU with VNNI and bfloat16 units (AVX-512)")

sides = st.sampled_from([32, 64, 96, 256])


def matrices(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def whole_numbers(*shape: int, along: int) -> Tensor:
    """From -127 to 127, the largest of which is in each row (`along` 2) or column (1), so that its scale is 1."""
    numbers = torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()
    numbers.select(along, 0).fill_(127)
    return numbers


def ours_by_panels(left: Tensor, right: Tensor) -> Tensor:
    out = torch.full((*left.shape[:2], right.shape[2]), torch.nan, dtype=torch.bfloat16)
    by_panels(left, Panels.of(right), out)
    return out


def ours_by_columns(left: Tensor, right: Tensor) -> Tensor:
    out = torch.full((left.shape[0], left.shape[1], right.shape[2]), torch.nan, dtype=torch.bfloat16)
    by_columns(left, right, out)
    return out


@given(places=st.integers(1, 3), rows=st.integers(MIN_ROWS, 150), inner=sides, columns=sides, turned=st.booleans())
def test_whole_numbers_are_multiplied_exactly(places: int, rows: int, inner: int, columns: int, turned: bool) -> None:
    left, right = whole_numbers(places, rows, inner, along=2), whole_numbers(places, inner, columns, along=1)
    if turned:
        right = right.mT.contiguous().mT
    assert torch.equal(ours_by_panels(left, right), (left.float() @ right.float()).bfloat16())


@given(places=st.integers(1, 3), rows=sides, inner=st.integers(1, BLOCK), columns=sides)
def test_whole_numbers_of_columns_are_multiplied_exactly(places: int, rows: int, inner: int, columns: int) -> None:
    left, right = whole_numbers(places, inner, rows, along=1).mT, whole_numbers(places, inner, columns, along=1)
    assert torch.equal(ours_by_columns(left, right), (left.float() @ right.float()).bfloat16())


@pytest.mark.parametrize("inner", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_the_error_is_about_a_hundredth(inner: int) -> None:
    left, right = matrices(2, inner, 64).mT, matrices(2, inner, 32, seed=1)
    assert rms_error(ours_by_columns(left, right), left.double() @ right.double()) < 0.012
    left, right = matrices(2, inner + MIN_ROWS, 256), matrices(2, 256, 32, seed=1)
    assert rms_error(ours_by_panels(left, right), left.double() @ right.double()) < 0.012


def test_rows_and_columns_have_scales_of_their_own() -> None:
    """30 orders of magnitude apart they are as exact as any others."""
    by_row, by_column = torch.logspace(-15, 15, 96).double()[:, None], torch.logspace(15, -15, 96).double()
    left, right = (matrices(1, 96, 64) * by_row).bfloat16(), (matrices(1, 64, 96, seed=1) * by_column).bfloat16()
    size = by_row * by_column
    assert rms_error(ours_by_panels(left, right) / size, (left.double() @ right.double()) / size) < 0.012
    left = (matrices(1, 64, 96) * by_row[:, 0]).bfloat16().mT
    assert rms_error(ours_by_columns(left, right) / size, (left.double() @ right.double()) / size) < 0.012


def test_so_do_blocks() -> None:
    left, right = matrices(1, 2 * BLOCK, 32).mT, matrices(1, 2 * BLOCK, 32, seed=1)
    left[:, :, BLOCK:] *= 1e-6
    right[:, BLOCK:] *= 1e6
    right[:, :BLOCK] *= 1e-6
    alone = [ours_by_columns(left[:, :, block], right[:, block]) for block in (slice(BLOCK), slice(BLOCK, None))]
    assert rms_error(ours_by_columns(left, right), alone[0].double() + alone[1].double()) < 0.005
    for one, block in zip(alone, (slice(BLOCK), slice(BLOCK, None)), strict=True):
        assert rms_error(one, left[:, :, block].double() @ right[:, block].double()) < 0.012


def test_factors_may_be_parts_of_others() -> None:
    left, right = matrices(3, 40, 64), matrices(3, 64, 32, seed=1)
    out = torch.zeros((3, 50, 32), dtype=torch.bfloat16)
    by_panels(left[:, 5:35], Panels.of(right), out[:, 10:40])
    assert torch.equal(out[:, 10:40], ours_by_panels(left, right)[:, 5:35])
    assert not out[:, :10].any() and not out[:, 40:].any()
    room = torch.zeros((3, 64, 32 + 8), dtype=torch.bfloat16)
    by_columns(left[:, 5:35].mT, matrices(3, 40, 32)[:, 5:35], room[:, :, :32])
    expected = ours_by_columns(left[:, 5:35].contiguous().mT, matrices(3, 40, 32)[:, 5:35].contiguous())
    assert torch.equal(room[:, :, :32], expected)
    assert not room[:, :, 32:].any()


def test_zeros_give_zeros_and_what_is_no_number_stays_visible() -> None:
    left, right = matrices(1, 16, 32), matrices(1, 32, 32, seed=1)
    left[0, 3], left[0, 5, 7], left[0, 9, 2] = 0, torch.nan, torch.inf
    ours = ours_by_panels(left, right)
    assert not ours[0, 3].any()
    finite = ours.isfinite().all(2)[0]
    assert [row for row in range(16) if not finite[row]] == [5, 9]
    assert not ours[0, [5, 9]].isfinite().any()
    assert not ours_by_columns(left.mT, left)[0, 7].isfinite().any()
    assert not ours_by_columns(torch.zeros_like(left).mT, right[:, :16]).any()


def test_threads_make_no_difference() -> None:
    left, right, columns = matrices(5, 300, 64), matrices(5, 64, 96, seed=1), matrices(5, 300, 32, seed=2)
    kept = torch.get_num_threads()
    try:
        made = []
        for num in (1, 2, 3):
            torch.set_num_threads(num)
            made.append((ours_by_panels(left, right), ours_by_columns(left.mT, columns)))
    finally:
        torch.set_num_threads(kept)
    for others in made[1:]:
        assert all(torch.equal(one, other) for one, other in zip(made[0], others, strict=True))


def test_what_is_taken() -> None:
    assert products.takes(torch.bfloat16, 32, 256)
    assert not products.takes(torch.bfloat16, 48)
    assert not products.takes(torch.float32, 64)
    for left, right in [((1, 16, 48), (1, 48, 32)), ((1, 16, 64), (1, 64, 40))]:
        with pytest.raises(AssertionError):
            ours_by_panels(matrices(*left), matrices(*right))
    for left in [(1, MIN_ROWS - 1, 64), (2, 16, 64), (1, 16, 32)]:
        with pytest.raises(AssertionError):
            ours_by_panels(matrices(*left), matrices(1, 64, 32))
    with pytest.raises(AssertionError):
        ours_by_columns(matrices(1, 16, 40).mT, matrices(1, 16, 32))
