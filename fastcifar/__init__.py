"""Fast and honest training of small image networks."""

__version__ = "0.1.0"
