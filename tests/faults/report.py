"""What a campaign says at its end: rows of counts, findings with the inputs kept for replay, one line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Row:
    """Counts of one thing that was done again and again."""

    part: str
    what: str
    tried: int = 0
    right: int = 0
    """The right answer, or the same bits as without the fault."""
    refused: int = 0
    """One clear error."""
    findings: int = 0
    note: str = ""


@dataclass
class Finding:
    """Something that must not happen."""

    part: str
    what: str
    detail: str
    saved: str = ""
    """The file to replay it with."""


@dataclass
class Report:
    """All of it."""

    seed: int
    minutes: float
    engine: str
    rows: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    took_s: float = 0.0

    def to_json(self) -> dict[str, object]:
        """Plain values, with sums by part."""
        parts: dict[str, dict[str, int]] = {}
        for row in self.rows:
            sums = parts.setdefault(row.part, dict.fromkeys(("tried", "right", "refused", "findings"), 0))
            for name in sums:
                sums[name] += getattr(row, name)
        return {"faults": parts, **asdict(self)}

    def save(self, folder: Path) -> Path:
        """Write report.json."""
        path = folder / "report.json"
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        return path

    def render(self) -> str:
        """The table, the findings, what was left out."""
        head = ("part", "what", "tried", "right", "refused", "findings", "note")
        cells = [(r.part, r.what, f"{r.tried:,}", f"{r.right:,}", f"{r.refused:,}", str(r.findings), r.note)
                 for r in self.rows]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        lines = [f"fastcifar faults: {self.took_s:.0f} s, seed {self.seed}, {self.engine}"]
        for row in (head, *cells):
            left = [f"{cell:<{width}}" for cell, width in zip(row[:2], widths[:2], strict=True)]
            right = [f"{cell:>{width}}" for cell, width in zip(row[2:6], widths[2:6], strict=True)]
            lines.append("  ".join([*left, *right, row[6]]).rstrip())
        for what, sums in self.to_json()["faults"].items():  # type: ignore[attr-defined]
            lines.append(f"{what}: {sums['tried']:,} tried, {sums['findings']} findings")
        lines += [f"left out: {line}" for line in self.skipped]
        for finding in self.findings:
            lines.append(f"FINDING {finding.part} {finding.what}: {finding.detail}")
            if finding.saved:
                lines.append(f"        again: PYTHONPATH=tests python -m faults --replay {finding.saved}")
        return "\n".join(lines)
