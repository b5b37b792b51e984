"""Data sets in memory: found, read and checked. Needs the standard library and NumPy, nothing else."""

from fastcifar.data.errors import DataError
from fastcifar.data.locate import Source, cache_dir, load, locate
from fastcifar.data.split import Dataset, Split, stratified_rows

__all__ = ["DataError", "Dataset", "Source", "Split", "cache_dir", "load", "locate", "stratified_rows"]
