"""rich's console, for a reader who may go away."""

import rich.console


class Console(rich.console.Console):
    """Tells a closed pipe as Python does; rich's own ends the process with 1, which would be a failure."""

    def on_broken_pipe(self) -> None:
        """Raise it again."""
        raise BrokenPipeError
