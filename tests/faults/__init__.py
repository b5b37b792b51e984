"""The fault campaign: things that go wrong are done to fastcifar, counted, and kept for replay.

    make faults                                        ten minutes, all parts, a report at the end
    PYTHONPATH=tests python -m faults --minutes 2      the same without make
    PYTHONPATH=tests python -m faults --only fuzz --targets tar,index
    PYTHONPATH=tests python -m faults --replay FILE    one saved input again, with its traceback

Parts: `fuzz` (every reader of files), `kill` (SIGKILL at random moments), `load` (many runs, epochs left early).
"""
