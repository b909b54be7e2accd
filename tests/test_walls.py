"""The import rules between the packages hold; only the command line prints; docs match the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"sweeper", "models", "attacks", "analysis"}
ALLOWED = {
    "models": {
        "models",
        "torch",
        "torchvision",
        "opacus",
        "dp_accounting",
        "numpy",
        "scipy",
        "sklearn",
        "pyarrow",
        "PIL",
    },
    "attacks": {"attacks", "torch", "numpy", "scipy", "sklearn"},
    "analysis": {
        "analysis",
        "numpy",
        "pandas",
        "pyarrow",
        "scipy",
        "matplotlib",
        "adjustText",
        "jinja2",
        "PIL",
        "markupsafe",
        "ruamel",
        "vl_convert",
    },
}


def imports(path: Path) -> set[str]:
    """Top-level names of everything that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found - set(sys.stdlib_module_names)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_they_may(package: str) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    for path in paths:
        assert imports(path) <= ALLOWED[package], path


def test_one_package_imports_ray_and_only_report_and_release_import_analysis() -> None:
    importing = {path.relative_to(ROOT / "sweeper"): imports(path) for path in (ROOT / "sweeper").rglob("*.py")}
    assert {path.parts[0] for path, found in importing.items() if "ray" in found} == {"cluster"}
    assert {path.parts[0] for path, found in importing.items() if "analysis" in found} == {
        "report.py",
        "release.py",
        "cluster",
    }


@pytest.mark.slow
def test_the_audit_imports_neither_torch_nor_ray() -> None:
    code = "import sys, sweeper.cli, sweeper.auditing.attack; sys.exit(bool({'torch', 'ray', 'models'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_schema_document_is_the_schema() -> None:
    from sweeper.results.schema import markdown

    assert (ROOT / "docs" / "schema.md").read_text(encoding="utf-8") == markdown(), "run `make schema`"


def test_the_tree_in_the_readme_is_the_tree() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("## The tree")[1].split("```")[1]
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.strip()}
    for package in sorted(OURS):
        for path in (ROOT / package).iterdir():
            if path.name not in ("__pycache__", "__init__.py", "py.typed") and not path.name.startswith("."):
                assert path.name in named, f"{package}/{path.name} is not in the README's tree"
