"""Law 12: imports go down the floors of the house only."""

import ast
from pathlib import Path

import pytest

import prefix_jax

PACKAGE = Path(prefix_jax.__file__).parent

# From the top: a module may import from its own floor and from those below.
FLOORS = [
    "__init__",
    "__main__",
    "cli",
    "process",
    "cli_recipes",
    "cli_sweep",
    "cli_prefixes",
    "cli_options",
    "runs",
    "storage",
    "scoring",
    "learning",
    "decoding",
    "data",
    "model",
    "mesh",
    "distributed",
    "recipe",
    "config",
    "data_config",
    "prefix_config",
    "score_config",
    "checks",
    "seal",
    "json_text",
    "errors",
]


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def floor(parts: tuple[str, ...]) -> int:
    return FLOORS.index(parts[0] if parts else "__init__")


def imports(path: Path) -> list[tuple[str, ...]]:
    """Dotted names below prefix_jax that a module imports, as parts."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "prefix_jax":
                found.append(tuple(name.split(".")[1:]))
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts
    for imported in imports(path):
        assert floor(imported) >= floor(own), f"{own} imports {imported}"


def test_there_are_no_circles():
    graph = {}
    for path in modules():
        name = path.relative_to(PACKAGE).with_suffix("").parts
        graph[name] = set(imports(path))
    done, active = set(), []

    def visit(name):
        if name in done or name not in graph:
            return
        assert name not in active, f"circle: {[*active, name]}"
        active.append(name)
        for target in graph[name]:
            visit(target)
        active.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_modules_fit_on_a_few_screens():
    long = {
        str(path.relative_to(PACKAGE)): lines
        for path in modules()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 350
    }
    assert long == {}
