"""Matrix products of bfloat16 on CPUs with VNNI units (AVX-512), whose factors are rounded to 8 bits on the way.

Of large matrices 1.6 times as fast as the library's products of bfloat16, for errors of about 1 % of the result's size.
What shares a scale, and so what one large value takes precision from, is a row or part of a column (numba_products.py).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastcifar.kernels import numba_products
from fastcifar.kernels.numba_bytes import PANEL
from fastcifar.kernels.numba_products import (
    BLOCK,
    BY_COLUMNS,
    BY_PANELS,
    HAS_UNITS,
    MIN_ROWS,
    ROWS,
    TO_PANELS,
)
from fastcifar.kernels.threads import num_tasks_for, share_out

__all__ = [
    "BLOCK",
    "HAS_UNITS",
    "MIN_ROWS",
    "Panels",
    "Scratch",
    "by_columns",
    "by_panels",
    "kernel_by_panels",
    "prepare",
    "rows_layout",
    "takes",
]


_MOST_SUMMED = 2**31 // 127**2
"""Products of two bytes whose sum 32 bits are sure to hold."""


def takes(dtype: torch.dtype, *sizes: int) -> bool:
    """Whether this CPU has the units, and factors of this dtype and these sizes of their sides can be multiplied."""
    return HAS_UNITS and dtype == torch.bfloat16 and all(size % PANEL == 0 for size in sizes)


def prepare() -> None:
    """Have the compiled code ready, which otherwise happens when it is first used."""
    for use in (TO_PANELS, BY_PANELS, BY_COLUMNS):
        numba_products.kernel(use)


@dataclass(frozen=True)
class Panels:
    """A right factor [places, inner, columns], rounded: each column has a scale."""

    inner: int
    columns: int
    values: Tensor
    """uint8 [places, inner * columns], in numba_products' order."""
    scales: Tensor
    """float32 [places, columns]."""

    @classmethod
    def of(cls, right: Tensor) -> "Panels":
        """Of bfloat16 [places, inner, columns], either way round in memory; inner and columns as `takes` has them."""
        places, inner, columns = right.shape
        assert takes(right.dtype, inner, columns)
        values, scales = torch.empty((places, inner * columns), dtype=torch.uint8), torch.empty((places, columns))
        transposed, num_tasks = right.stride(2) != 1, num_tasks_for(places)
        scratch = Scratch.of(num_tasks, numba_products.panels_scratch(inner, columns))
        told = numba_products.PanelsLayout(
            *_matrices(right.mT if transposed else right),
            inner,
            columns,
            int(transposed),
            values.data_ptr(),
            scales.data_ptr(),
            *scratch.told,
        )
        share_out(numba_products.kernel(TO_PANELS), places, told, num_tasks)
        return cls(inner, columns, values, scales)


def by_panels(left: Tensor, right: Panels, out: Tensor) -> None:
    """Write left [places, rows, inner] times right into out [places, rows, columns], both bfloat16.

    Each row of left has a scale. There are at least MIN_ROWS; values of left's and out's rows lie one behind the other.
    What convolutions do with the same kernel and `rows_layout`, a few images at a time, here is done at once.
    """
    places, rows, _ = left.shape
    assert out.shape == (places, rows, right.columns) and rows >= MIN_ROWS
    num_tasks = num_tasks_for(places)
    told, _scratch = rows_layout(left, right, out, num_tasks)
    share_out(kernel_by_panels(), places * told.blocks, told, num_tasks)


def rows_layout(
    left: Tensor, right: Panels, out: Tensor, num_tasks: int
) -> tuple[numba_products.RowsLayout, "Scratch"]:
    """What the kernel of `by_panels` takes, and the tasks' memory, which must be kept until it has run."""
    places, rows, inner = left.shape
    assert left.dtype == out.dtype == torch.bfloat16 and out.shape[0] == places
    assert inner == right.inner and places == len(right.values) and inner <= _MOST_SUMMED
    scratch = Scratch.of(num_tasks, numba_products.rows_scratch(inner))
    told = numba_products.RowsLayout(
        *_matrices(left),
        rows,
        inner,
        right.columns,
        right.values.data_ptr(),
        right.scales.data_ptr(),
        *_matrices(out),
        -(-rows // ROWS),
        *scratch.told,
    )
    return told, scratch


def kernel_by_panels() -> Any:
    """That kernel, whose pieces of work are the places' blocks of rows: what threads.share_out takes."""
    return numba_products.kernel(BY_PANELS)


def by_columns(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write left [places, rows, inner] times right [places, inner, columns] into out; all are bfloat16.

    Of left's rows and of right's columns, BLOCK values share a scale. Rows and columns are as `takes` has them, inner
    is any number. Values of left's columns, of right's rows and of out's lie one behind the other.
    """
    places, rows, inner = left.shape
    columns = right.shape[2]
    assert takes(left.dtype, rows, columns) and left.dtype == right.dtype == out.dtype
    assert right.shape == (places, inner, columns) and out.shape == (places, rows, columns)
    num_tasks = num_tasks_for(places)
    scratch = Scratch.of(num_tasks, numba_products.columns_scratch(rows, columns))
    told = numba_products.ColumnsLayout(
        *_matrices(left.mT), *_matrices(right), inner, rows, columns, *_matrices(out), *scratch.told
    )
    share_out(numba_products.kernel(BY_COLUMNS), places, told, num_tasks)


def _matrices(matrices: Tensor) -> tuple[int, int, int]:
    """Address, bytes from one to the next, values from row to row."""
    assert matrices.stride(2) == 1 and matrices.device.type == "cpu"
    return matrices.data_ptr(), matrices.stride(0) * matrices.element_size(), matrices.stride(1)


class Scratch(NamedTuple):
    """Memory for tasks, so many bytes each."""

    memory: Tensor
    task_bytes: int

    @classmethod
    def of(cls, num_tasks: int, task_bytes: int) -> "Scratch":
        """For so many tasks, each of which needs so many bytes."""
        # What follows a task's begins with a line of the cache, as panels must.
        task_bytes = -(-task_bytes // 64) * 64
        return cls(torch.empty(num_tasks * task_bytes, dtype=torch.uint8), task_bytes)

    @property
    def told(self) -> tuple[int, int]:
        """What numba_products takes."""
        return self.memory.data_ptr(), self.task_bytes
