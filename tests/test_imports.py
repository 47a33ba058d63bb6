"""Which module may import what, read from the source itself."""

import ast
import importlib.machinery
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from entries import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("model", "trainables", "search")
# Dotted name -> file, of every module in whatever folder of a package; a folder's own file under the folder's name.
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(path: Path) -> Iterator[str]:
    """Top-level names of all that a file imports, wherever in it that stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: a relative import"
            yield (node.module or "").partition(".")[0]


def importers(*packages: str) -> set[str]:
    return {module for module, path in MODULES.items() if set(packages) & set(imports(path))}


def test_every_package_was_found() -> None:
    assert {module.partition(".")[0] for module in MODULES} == set(PACKAGES)
    assert set(PACKAGES) <= set(MODULES)


def test_every_folder_of_python_files_is_a_package() -> None:
    """Else it would not be installed."""
    assert {path.parent for path in MODULES.values() if not (path.parent / "__init__.py").is_file()} == set()


@pytest.mark.parametrize(("package", "above"), [("model", {"trainables", "search"}), ("trainables", {"search"})])
def test_imports_point_from_search_over_trainables_to_model(package: str, above: set[str]) -> None:
    assert {module for module in importers(*above) if module.partition(".")[0] == package} == set()


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("ray", {"trainables.two_phase", "search.execution"}),
        # search/audit holds MLflow's store against the ledger
        ("mlflow", {"trainables.tracking", "model.text.registered", "search.doctor", "search.audit"}),
        ("datasets", {"trainables.inputs.corpus"}),
        ("transformers", {"trainables.inputs.corpus", "trainables.inputs.embeddings", "trainables.baselines.networks"}),
    ],
)
def test_a_library_is_imported_only_where_it_belongs(library: str, allowed: set[str]) -> None:
    """`allowed` are modules, and folders with all in them."""
    assert {module for module in importers(library) if not {module, module.rpartition(".")[0]} & allowed} == set()


# Each folder of a package may import those before it. What lies in no folder is shared, or puts them together.
WINGS = {
    "model": ("ops", "text"),
    "trainables": ("host", "inputs", "phases", "evaluation", "tracking", "training", "baselines"),
    "search": ("ledger", "findings", "execution", "audit"),
}


def own_imports(path: Path) -> set[str]:
    """Modules of this project that a file imports when it runs, wherever in it that stands."""
    found: set[str] = set()
    open_nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            open_nodes += node.orelse
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= inside or {str(node.module)}
        else:
            open_nodes += ast.iter_child_nodes(node)
    return found & set(MODULES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_imports_those_before_it_only(package: str) -> None:
    wings = WINGS[package]
    assert {module.split(".")[1] for module in MODULES if module.count(".") == 2} >= set(wings)
    folders = {path.parent.name for path in MODULES.values() if path.parent.parent.name == package}
    assert folders == set(wings)
    backward = [
        (module, imported)
        for module, path in MODULES.items()
        for imported in own_imports(path)
        if module.startswith(f"{package}.") and imported.startswith(f"{package}.")
        if module.split(".")[1] in wings and imported.split(".")[1] in wings
        if wings.index(module.split(".")[1]) < wings.index(imported.split(".")[1])
    ]
    assert backward == []


def circle(imported_by: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in this order, the last one the first; none where there is no circle."""
    left = {module: found - {module} for module, found in imported_by.items()}
    while last := [module for module, found in left.items() if not found & left.keys()]:
        for module in last:
            del left[module]
    if not left:
        return []
    walked = [min(left)]
    while walked.count(walked[-1]) == 1:
        walked.append(min(left[walked[-1]] & left.keys()))
    return walked[walked.index(walked[-1]) :]


def test_no_modules_import_each_other() -> None:
    """Nor inside functions, where an import hides a circle."""
    assert circle({module: own_imports(path) for module, path in MODULES.items()}) == []


def test_a_circle_is_named() -> None:
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]


def test_optuna_is_imported_in_search_only() -> None:
    assert {module for module in importers("optuna") if not module.startswith("search.")} == set()


def test_the_model_needs_torch_and_what_comes_with_it_and_safetensors_and_tokenizers_only() -> None:
    modules = {module: path for module, path in MODULES.items() if module.startswith("model.")}
    del modules["model.text.registered"]  # asks MLflow where a registered model lies
    outside = {name for path in modules.values() for name in imports(path)}
    assert outside - sys.stdlib_module_names - {"model", "torch", "safetensors", "tokenizers", "triton"} == set()


def top_level_at_import(path: Path) -> set[str]:
    """What a file imports when it is imported itself: neither in functions nor for types only."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


ENTRIES = [entry.removesuffix(".py").replace("/", ".") for entry in COMMANDS]


def test_the_entries_were_found() -> None:
    assert {"search.asym_layers", "search.ui", "trainables.train", "model.generate"} <= set(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES)
def test_importing_an_entry_imports_nothing_heavy(entry: str) -> None:
    seen, waiting = set(), [entry]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += [module.rpartition(".")[0]] if "." in module else []  # a package is imported before its modules
            waiting += top_level_at_import(MODULES[module]) if module in MODULES else ()
    heavy = {"torch", "ray", "mlflow", "optuna", "datasets", "transformers", "pandas", "numpy"}
    assert {module.partition(".")[0] for module in seen} & heavy == set()


@pytest.mark.parametrize("module", sorted(set(MODULES) - set(PACKAGES)))
def test_a_module_or_folder_shadows_nothing_where_its_folder_comes_first_on_the_path(module: str) -> None:
    name = module.rpartition(".")[2]
    assert name not in sys.stdlib_module_names
    assert name not in PACKAGES
    # site-packages only: the folder of these tests is on sys.path too
    installed = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    assert installed
    assert importlib.machinery.PathFinder.find_spec(name, installed) is None
