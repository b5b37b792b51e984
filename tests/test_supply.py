"""What set-up installs is pinned, and each file is checked by its hash."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_is_pinned_with_hashes() -> None:
    blocks = re.split(r"\n(?=[A-Za-z0-9])", "\n" + (ROOT / "constraints.txt").read_text(encoding="utf-8"))[1:]
    assert len(blocks) > 50
    for block in blocks:
        assert re.match(r"[\w.-]+==\S+", block), block[:80]
        assert "--hash=sha256:" in block, block[:80]
    pinned = {canonical(block.partition("==")[0]) for block in blocks}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(name for extra in ("dali", "ffcv", "cuda", "sweep", "bench", "dev") for name in extras[extra]),
    ]
    assert {canonical(re.split(r"[<>=!~ \[]", name)[0]) for name in wanted} <= pinned
