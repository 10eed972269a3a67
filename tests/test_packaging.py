"""The three source folders are one import package, in a checkout and in a wheel."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"graphprune.adapters": "adapters", "graphprune.spectral": "spectral"}


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "graphprune", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("graphprune ")


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def source(name: str) -> Path:
    """Where a package or a module lies; a source archive has not the two links of a checkout."""
    for package, folder in FOLDERS.items():
        if name == package or name.startswith(f"{package}."):
            return ROOT / (folder + name.removeprefix(package)).replace(".", "/")
    return ROOT / name.replace(".", "/")


def packages_on_disk() -> set[str]:
    """Every folder with Python sources, under the name it is imported by."""
    found = set()
    for top in ("graphprune", "adapters", "spectral"):
        prefix = top if top == "graphprune" else f"graphprune.{top}"
        for source in (ROOT / top).rglob("*.py"):  # does not follow the two links
            parts = source.parent.relative_to(ROOT / top).parts
            if parts[:1] not in (("adapters",), ("spectral",)):
                found.add(".".join([prefix, *parts]))
    return found


def test_every_sub_package_is_listed(pyproject):
    listed = pyproject["tool"]["setuptools"]["packages"]
    assert listed == sorted(set(listed))
    assert set(listed) == packages_on_disk()


def test_every_data_file_is_listed(pyproject):
    """A file that is not listed is missing from the wheel."""
    listed = pyproject["tool"]["setuptools"]["package-data"]
    for name in packages_on_disk():
        folder = source(name)
        found = {path for pattern in listed.get(name, ()) for path in folder.glob(pattern)}
        kept = {path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
        assert kept <= found, f"{name}: {sorted(str(path) for path in kept - found)}"


def test_every_package_has_an_init(pyproject):
    for name in pyproject["tool"]["setuptools"]["packages"]:
        assert (source(name) / "__init__.py").is_file(), name


@pytest.mark.skipif((ROOT / "PKG-INFO").exists(), reason="a source archive holds no links")
@pytest.mark.parametrize(("name", "folder"), sorted(FOLDERS.items()))
def test_links_are_relative_and_lead_to_the_sources(name, folder):
    link = ROOT / name.replace(".", "/")
    assert link.is_symlink()
    assert link.readlink() == Path("..", folder)


def test_nothing_was_imported_under_a_bare_name():
    """Collection has imported all modules by now, doctests included."""
    assert "adapters" not in sys.modules
    assert "spectral" not in sys.modules
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str):
            continue
        path = Path(file).resolve()
        if any(path.is_relative_to(ROOT / folder) for folder in FOLDERS.values()):
            assert name.startswith(tuple(FOLDERS)), f"{path} was imported as {name}"


@pytest.mark.slow
def test_the_source_archive_has_what_its_tests_need(tmp_path):
    """Every file of the checkout but the two links; building it warns of nothing that matters."""
    unwanted = ("*.egg-info", "__pycache__", "build", "dist", "*cache", ".hypothesis", "_build")
    copy = tmp_path / "copy"
    shutil.copytree(
        ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", *unwanted)
    )
    program = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=copy, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    with tarfile.open(tmp_path / done.stdout.splitlines()[-1]) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    egg = copy / "graphprune.egg-info"
    wanted = {p for p in copy.rglob("*") if p.is_file() and egg not in p.parents}
    assert {str(path.relative_to(copy)) for path in wanted} <= packed
    assert "tests/golden/circuit_v2/circuit.json" in packed
    assert "absent from the `packages` configuration" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("folder", sorted(FOLDERS.values()))
def test_pytest_on_a_bare_folder_collects_through_the_package(folder):
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", folder]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode in (0, 5), result.stdout + result.stderr
    ids = [line for line in result.stdout.splitlines() if "::" in line]
    assert all(line.startswith(f"graphprune/{folder}/") for line in ids)


def test_import_is_light():
    program = (
        "import sys, graphprune;"
        "print(sorted({'transformers', 'torch_geometric'}.intersection(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_entry_points_name_modules_on_disk(pyproject):
    """A target that does not exist fails only on first use otherwise."""
    groups = pyproject["project"].get("entry-points", {})
    targets = [t for group in groups.values() for t in group.values()]
    targets += pyproject["project"].get("scripts", {}).values()
    for target in targets:
        path = source(target.partition(":")[0])
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), target


def test_modules_can_be_the_first_import():
    """No cycle that only another module's import before them hides."""
    program = (
        "import sys\n"
        "for name in ('search.greedy_pruning', 'mib.data', 'tasks', 'export', 'evaluation'):\n"
        "    for old in [m for m in sys.modules if m.partition('.')[0] == 'graphprune']:\n"
        "        del sys.modules[old]\n"
        "    __import__(f'graphprune.{name}')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
