"""One module a command; each has Args and run(args)."""

from typing import Annotated, TypeVar

import tyro

T = TypeVar("T")

Option = Annotated[T | None, tyro.conf.DisallowNone, tyro.conf.arg(help_behavior_hint="")]
"""An option that may be left out: None by default, which its help does not show. The docstring says what happens then.

Field docstrings are one line each: tyro shows a line break as it is.
"""
