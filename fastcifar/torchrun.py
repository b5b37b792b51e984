"""What torchrun says of itself by the environment, which takes no import to read."""

import os


def num_processes() -> int:
    """How many processes it started; 1 where it started none."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """Which of them this one is, counted from 0."""
    return int(os.environ.get("RANK", "0")) if num_processes() > 1 else 0
