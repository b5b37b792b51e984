"""Who may import whom: the lines of the house, held over the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "fastcifar.pipelines": ROOT / "pipelines",
    "fastcifar.kernels": ROOT / "kernels",
    "fastcifar.bench": ROOT / "bench",
}


def modules(package: str) -> dict[str, Path]:
    """Import names and files of a package, by where it is installed."""
    base = FOLDERS.get(package, ROOT / package.replace(".", "/"))
    return {
        f"{package}.{path.relative_to(base).with_suffix('').as_posix().replace('/', '.')}": path
        for path in base.rglob("*.py")
    }


def imports(path: Path) -> set[str]:
    """Everything of ours that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports by full name"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "fastcifar"}


def inside(name: str, packages: tuple[str, ...]) -> bool:
    return name == "fastcifar" or any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize(
    ("package", "may_import"),
    [
        ("fastcifar.kernels", ("fastcifar.kernels",)),
        ("fastcifar.data", ("fastcifar.data",)),
        ("fastcifar.artefacts", ("fastcifar.artefacts", "fastcifar.data", "fastcifar.claims", "fastcifar.__version__")),
        ("fastcifar.pipelines", ("fastcifar.pipelines", "fastcifar.kernels", "fastcifar.data", "fastcifar.artefacts")),
    ],
)
def test_lower_layers_import_no_higher_ones(package: str, may_import: tuple[str, ...]) -> None:
    found = modules(package)
    assert found
    for path in found.values():
        strangers = {name for name in imports(path) if not inside(name, may_import)}
        assert not strangers, f"{path} imports {strangers}"


def test_data_sets_need_numpy_and_nothing_else() -> None:
    known = {*sys.stdlib_module_names, "numpy", "fastcifar"}
    for path in modules("fastcifar.data").values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= known, path


@pytest.mark.parametrize("package", ["fastcifar.training", "fastcifar.models"])
def test_training_knows_pipelines_by_their_interface_only(package: str) -> None:
    for path in modules(package).values():
        by_name = {name for name in imports(path) if name.startswith("fastcifar.pipelines.")}
        assert by_name <= {"fastcifar.pipelines.Batch", "fastcifar.pipelines.Pipeline"}, f"{path} imports {by_name}"


def test_nothing_imports_commands_and_bench_but_themselves() -> None:
    for path in [*ROOT.glob("fastcifar/**/*.py"), *ROOT.glob("pipelines/*.py"), *ROOT.glob("kernels/*.py")]:
        if ROOT / "fastcifar" / "commands" in path.parents:
            continue
        assert not {n for n in imports(path) if n.startswith(("fastcifar.commands", "fastcifar.bench"))}, path


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fastcifar.cli import main; main(['--help']);"
        "heavy = {'torch', 'numpy', 'numba', 'tyro', 'rich'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "speedrun" in done.stdout
