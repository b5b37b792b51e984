"""`python -m faults`: run the campaign, or one saved input again."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from faults.report import Report
from faults.targets import TARGETS

SHARES = {"fuzz": 0.5, "kill": 0.35, "load": 0.15}


def main() -> int:
    """Run; the report is printed and saved, JSON is the last line. Exit code 1 where anything was found."""
    parser = argparse.ArgumentParser(
        prog="faults", description="Do to fastcifar what goes wrong in the world, and count."
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="about how long it may take (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="fixes every draw of the campaign")
    parser.add_argument("--only", nargs="+", choices=tuple(SHARES), default=tuple(SHARES), help="parts to run")
    names = tuple(target.name for target in TARGETS)
    parser.add_argument("--targets", nargs="+", choices=names, default=names, help="readers to fuzz")
    parser.add_argument("--inputs", type=int, default=1 << 40, help="at most so many inputs a reader")
    parser.add_argument("--kills", type=int, default=50, help="moments of SIGKILL")
    parser.add_argument("--runs", type=int, default=500, help="short runs in one process")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of each pipeline left early")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--out", type=Path, default=Path("faults-report"), help="folder of the report and of findings")
    parser.add_argument("--replay", type=Path, help="a saved input to read again")
    args = parser.parse_args()
    from faults import fuzz

    if args.replay:
        return fuzz.replay(args.replay)
    args.out = args.out.absolute()  # so that what the report names is found from anywhere
    args.out.mkdir(parents=True, exist_ok=True)
    start_s = time.monotonic()
    guided = "guided by coverage (atheris)" if fuzz.engine() == "atheris" else "blind: atheris is not installed"
    report = Report(args.seed, args.minutes, f"fuzzing is {guided}")

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - start_s:5.0f} s] {line}", file=sys.stderr, flush=True)

    seconds = {name: 60 * args.minutes * SHARES[name] / sum(SHARES[n] for n in args.only) for name in args.only}
    if "fuzz" in args.only:
        fuzz.run(report, seconds["fuzz"], args.out, tell, tuple(args.targets), args.inputs, args.jobs)
    if "kill" in args.only:
        from faults import kill

        kill.run(report, seconds["kill"], args.out, tell, args.kills)
    if "load" in args.only:
        from faults import load

        load.run(report, seconds["load"], tell, args.runs, args.epochs)
    report.took_s = time.monotonic() - start_s
    path = report.save(args.out)
    print(report.render())
    print(f"report: {path}")
    print(json.dumps(report.to_json()))
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
