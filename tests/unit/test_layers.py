"""Checks the layers of the library in its source: which module may import which, also inside functions."""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from commands import ROOT

SOURCE_ROOT = ROOT / "platform"

# Lowest first. A module may import from lower rows and from its own package, but not from another package in its row.
# "spanlake" is spanlake/__init__.py, the public entry, which exports names from lower rows.
LAYERS = (
    ("ahead", "errors", "ray_job", "strict_yaml"),
    ("text", "decoding", "storage", "calibration"),
    ("labels", "redaction", "rules", "splitters"),
    ("modeling", "client", "options"),
    ("package",),
    ("inference", "data", "export"),
    ("spanlake",),
    ("doctor", "cluster", "chat"),
    ("reach",),
    ("evaluation",),
    ("training", "extraction", "serving", "adapters"),
    ("annotation", "studies"),
    ("cli",),
    ("__main__",),
)
HEIGHT = {layer: height for height, row in enumerate(LAYERS) for layer in row}
# Folders inside a layer, lowest first. A module beside the folders may import all of them.
INNER = {"extraction": ("source", "output", "run")}
DYNAMIC = ("__import__", "import_module", "importlib.import_module")
MAY_USE_RAY = ("cluster", "evaluation", "training", "extraction", "serving")


class Import(NamedTuple):
    file: Path
    line: int
    module: str  # absolute dotted name of the module that is imported


def module_name(file: Path, root: Path) -> str:
    """Returns a file's module: `spanlake.data` for `root/spanlake/data/__init__.py`."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path, root: Path) -> Iterator[Import]:
    """Yields every import statement of a file, at any depth, and every `import_module` of a literal name."""
    package = ".".join(file.relative_to(root).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = imported_from(node, package, root)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in DYNAMIC:
            names = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        else:
            continue
        for name in names:
            yield Import(file, node.lineno, name)


def imported_from(node: ast.ImportFrom, package: str, root: Path) -> list[str]:
    """Returns the modules that `from … import a, b` loads: submodules of these names, else the module itself."""
    origin = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        origin = ".".join([*above, *filter(None, [node.module])])
    folder = root / origin.replace(".", "/")
    submodules = [a.name for a in node.names if (folder / a.name).is_dir() or (folder / f"{a.name}.py").exists()]
    whole = [origin] if len(submodules) < len(node.names) else []
    return whole + [f"{origin}.{name}" for name in submodules]


def layer_of(module: str) -> str:
    """Returns a module's layer: `data` for `spanlake.data.examples`, `spanlake` for `spanlake`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def violations(root: Path) -> list[str]:
    """Returns one sentence for every import below `root/spanlake` that breaks the rules, and for every cycle."""
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    launchers: dict[str, set[str]] = {layer: set() for layer in MAY_USE_RAY}
    for file in sorted((root / "spanlake").rglob("*.py")):
        module = module_name(file, root)
        layer = layer_of(module)
        if layer not in HEIGHT:
            found.append(f"{module} has no place in the layers: give '{layer}' a row in LAYERS.")
            continue
        for imported in imports(file, root):
            top = imported.module.split(".")[0]
            graph.setdefault(module, set()).add(imported.module)
            if top == "ray" and layer in launchers:
                launchers[layer].add(module)
            elif top == "ray":
                found.append(f"{at(imported, root)} imports Ray, which only {', '.join(MAY_USE_RAY)} may do.")
            elif top == "spanlake":
                found += broken(imported, layer, root) + broken_inside(imported, module, root)
    found += [f"The modules {' -> '.join(cycle)} import each other in a circle." for cycle in cycles(graph)]
    for layer, modules in launchers.items():
        if len(modules) > 1:
            found.append(
                f"Ray is imported in {' and '.join(sorted(modules))}: keep it in one launching module of {layer}."
            )
    return found


def broken(imported: Import, layer: str, root: Path) -> list[str]:
    """Returns a sentence about a forbidden import of `spanlake` in a module of `layer`; nothing if it is allowed."""
    target = layer_of(imported.module)
    if target == layer or HEIGHT.get(target, len(LAYERS)) < HEIGHT[layer]:
        return []
    below = ", ".join(name for row in LAYERS[: HEIGHT[layer]] for name in row) or "nothing of spanlake"
    return [f"{at(imported, root)} imports {imported.module}, but {layer} may only import what lies below it: {below}."]


def broken_inside(imported: Import, module: str, root: Path) -> list[str]:
    """Returns a sentence about an upward import between folders of one layer; nothing if it is allowed."""
    folders = INNER.get(layer_of(module), ())
    here, there = folder_of(module), folder_of(imported.module)
    if layer_of(module) != layer_of(imported.module) or here not in folders:
        return []
    if there in folders[: folders.index(here) + 1]:
        return []
    below = ", ".join(folders[: folders.index(here)]) or "no other folder"
    return [f"{at(imported, root)} imports {imported.module}, but {here} may only import what lies below it: {below}."]


def folder_of(module: str) -> str:
    """Returns a module's folder in its layer: `output` for `spanlake.extraction.output.plan`."""
    return module.split(".")[2] if module.count(".") > 1 else ""


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Returns the groups of modules that import each other in a circle (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for target in sorted(graph.get(module, ())):
            if target not in order:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], order[target])
        if lowest[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return found


def at(imported: Import, root: Path) -> str:
    return f"{imported.file.relative_to(root)}:{imported.line}"


def test_every_import_goes_downwards_and_ray_stays_in_the_launching_modules():
    found = violations(SOURCE_ROOT)
    assert not found, "\n" + "\n".join(found)


def test_the_check_reads_the_library():
    assert (SOURCE_ROOT / "spanlake" / "errors.py").exists()


PLANTED = [
    ("text.py", "from spanlake.package import load", "text.py:1 imports spanlake.package"),
    ("text.py", "import spanlake.decoding", "text.py:1 imports spanlake.decoding"),
    ("text.py", "from spanlake import Extractor", "text.py:1 imports spanlake, but"),
    ("text.py", "from spanlake import cli", "text.py:1 imports spanlake.cli"),
    ("data/rows.py", "def f():\n    from spanlake.training import recipe", "rows.py:2 imports spanlake.training"),
    ("data/rows.py", "from ..evaluation import metrics", "rows.py:1 imports spanlake.evaluation"),
    ("data/__init__.py", "from .. import cli", "__init__.py:1 imports spanlake.cli"),
    ("extraction/plan.py", "from spanlake.serving import batcher", "plan.py:1 imports spanlake.serving"),
    ("data/suite.py", "import ray.data", "suite.py:1 imports Ray"),
    ("package.py", "import importlib\nimportlib.import_module('ray')", "package.py:2 imports Ray"),
    ("helpers.py", "", "spanlake.helpers has no place in the layers"),
    ("extraction/source/a.py", "from spanlake.extraction.output import plan", "a.py:1 imports spanlake.extraction.out"),
    ("extraction/output/a.py", "from spanlake.extraction.run import unit", "a.py:1 imports spanlake.extraction.run"),
    (
        "extraction/source/a.py",
        "from spanlake.extraction.command import x",
        "a.py:1 imports spanlake.extraction.command",
    ),
]


@pytest.mark.parametrize(("path", "source", "expected"), PLANTED)
def test_the_check_finds_a_planted_violation(tmp_path: Path, path: str, source: str, expected: str):
    plant(tmp_path, {"cli.py": "", path: source})
    assert [sentence for sentence in violations(tmp_path) if expected in sentence], violations(tmp_path)


@pytest.mark.parametrize("inside", [False, True], ids=["at the top", "inside a function"])
def test_the_check_finds_a_planted_cycle(tmp_path: Path, inside: bool):
    back = "def f():\n    from spanlake.data.a import x" if inside else "from spanlake.data.a import x"
    plant(tmp_path, {"data/a.py": "from spanlake.data import b", "data/b.py": "from .c import y", "data/c.py": back})
    assert violations(tmp_path) == [
        "The modules spanlake.data.a -> spanlake.data.b -> spanlake.data.c import each other in a circle."
    ]


def test_the_check_finds_ray_in_two_modules_of_one_package(tmp_path: Path):
    plant(tmp_path, {"serving/deployment.py": "import ray", "serving/batcher.py": "from ray import serve"})
    assert violations(tmp_path) == [
        "Ray is imported in spanlake.serving.batcher and spanlake.serving.deployment: "
        "keep it in one launching module of serving."
    ]


def test_the_check_accepts_good_imports(tmp_path: Path):
    plant(
        tmp_path,
        {
            "__init__.py": "from spanlake.inference.extractor import Extractor",
            "inference/extractor.py": "from .settings import Settings\nfrom spanlake import package, text",
            "inference/settings.py": "from ..errors import UserError",
            "serving/deployment.py": "from ray import serve\nfrom spanlake.inference.extractor import Extractor",
            "extraction/pipeline.py": "def run():\n    import ray.data",
            "package.py": "",
            "text.py": "",
            "cli.py": "from spanlake import Extractor\nfrom spanlake.serving import deployment",
        },
    )
    assert violations(tmp_path) == []


def plant(root: Path, files: dict[str, str]) -> None:
    for path, source in files.items():
        file = root / "spanlake" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source), encoding="utf-8")
