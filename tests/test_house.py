"""The rules of the house: imports run downwards, latency never imports torch, the command line starts light."""

import ast
import os
import subprocess
import sys
import tomllib

import pytest

from tests.conftest import ROOT

MAY_IMPORT = {
    "edgebuild": {"pipeline"},
    "models": set(),
    "latency": set(),
    "export": {"models", "latency"},
    "pipeline": {"export", "models", "latency"},
}
WITHIN = {
    "show": set(),
    "data": set(),
    "training": {"data", "show"},
    "search": {"training", "data", "show"},
    "ship": {"search", "training", "data", "show"},
    "report": {"search", "data"},
    "cli": {"report", "ship", "search", "training", "data", "show"},
}
"""Of pipeline: a folder, and those that it may import, beside the modules that lie in none."""
ON_A_TARGET = {
    "latency": {"numpy", "onnxruntime", "openvino"},
    "export/preprocess.py": {"numpy", "PIL"},
    "export/rehearsal.py": set(),
}
AT_HOME = {"compare.py": {"scipy"}, "calibrate.py": {"scipy"}, "files.py": {"onnx", "google"}}
"""Statistics of results that came home, and what a model's files are: imported by no function that runs there."""
PACKAGES = list(MAY_IMPORT)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_downwards(package):
    for path in (ROOT / package).rglob("*.py"):
        ours = set(imports(path)) & set(PACKAGES)
        assert ours <= MAY_IMPORT[package] | {package}, path


@pytest.mark.parametrize("folder", WITHIN)
def test_within_pipeline_too(folder):
    assert {p.parent.name for p in (ROOT / "pipeline").glob("*/*.py")} == set(WITHIN)
    for path in (ROOT / "pipeline" / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline."):
                other = str(node.module).split(".")[1]
                assert other not in WITHIN or other in WITHIN[folder] | {folder}, f"{path}: {node.module}"


@pytest.mark.parametrize("part", ON_A_TARGET)
def test_what_runs_on_a_target_needs_little(part):
    where = ROOT / part
    for path in [where] if where.is_file() else where.rglob("*.py"):
        foreign = set(imports(path)) - set(sys.stdlib_module_names) - {"latency"}
        assert foreign <= ON_A_TARGET[part] | AT_HOME.get(path.name, set()), path


def test_a_timing_process_loads_no_statistics():
    code = "import sys, latency.worker; print(sorted({'scipy', 'torch', 'onnx', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_no_heavy_package():
    code = (
        "import sys; from edgebuild.__main__ import main; sys.argv = ['edgebuild', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'onnx', 'onnxruntime', 'openvino', 'nncf', 'optuna', 'sklearn', 'numpy'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_a_folder_full_of_decoys_shadows_nothing(tmp_path, cli):
    for name in ("models", "latency", "export", "pipeline"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the decoy was imported')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = cli("model", "show", "cpu_small", "--json", cwd=tmp_path, env={"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    from latency.machine import CONTROL

    done = cli("latency", "measure", CONTROL, "--processes", "1", cwd=tmp_path, env={"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr


def test_a_wheel_has_every_package_and_every_file_of_theirs():
    """What pyproject.toml lists, beside what there is."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {
        p.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for package in PACKAGES
        for p in (ROOT / package).rglob("__init__.py")
    }
    assert set(setup["packages"]) == there
    packed = {
        file
        for package, patterns in setup["package-data"].items()
        for pattern in patterns
        for file in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    for package in PACKAGES:
        for file in (f for f in (ROOT / package).rglob("*") if f.is_file() and "__pycache__" not in f.parts):
            in_a_package = file.suffix == ".py" and (file.parent / "__init__.py").exists()
            assert in_a_package or file in packed, file
