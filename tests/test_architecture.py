"""Holds the layout: imports point down, never in a circle, and each floor has its own libraries.

Every import counts, also those inside functions and those for type checkers only.
"""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# Module or package -> floor, and the third-party libraries it may import. The longest prefix holds;
# a new module finds its place here first.
NUMPY = {"numpy"}
FLOORS = {
    "asdproto": (0, set()),
    # Pure functions on arrays; jax and nothing else. Sampling prepares its tables in numpy, which
    # jax itself stands on.
    "asdproto.losses": (0, {"jax"}),
    "asdproto.prototypes": (0, {"jax"}),
    "asdproto.sampling": (0, {"jax", "numpy"}),
    # Plain Python and numpy.
    "asdproto.errors": (0, set()),
    "asdproto.files": (0, NUMPY),
    "asdproto.signals": (0, set()),
    "asdproto.config": (0, set()),
    "asdproto.arguments": (0, set()),
    "asdproto.audio_info": (0, NUMPY),
    "asdproto.summary": (0, NUMPY),
    "asdproto.audio": (0, NUMPY | {"librosa", "numba", "soundfile"}),
    "asdproto.features": (0, NUMPY | {"scipy"}),
    "asdproto.scoring": (0, NUMPY | {"sklearn", "scipy", "threadpoolctl"}),
    "asdproto.models": (1, {"jax", "flax"}),
    "asdproto.data": (1, NUMPY),
    "asdproto.data.download": (1, {"pooch", "requests", "rich"}),
    "asdproto.data.extract": (1, NUMPY | {"rich"}),
    "asdproto.data.parallel": (1, {"threadpoolctl"}),
    "asdproto.training": (2, NUMPY | {"jax", "flax", "optax", "rich"}),
    "asdproto.training.checkpoint": (2, NUMPY | {"jax", "orbax"}),
    "asdproto.results": (2, NUMPY),
    "asdproto.results.tables": (2, {"rich"}),
    "asdproto.results.page": (2, NUMPY | {"jinja2", "markupsafe"}),
    "asdproto.results.pictures": (2, NUMPY | {"matplotlib"}),
    "asdproto.results.sounds": (2, NUMPY | {"soundfile"}),
    "asdproto.systems": (3, NUMPY | {"jax", "flax", "optax", "rich", "sklearn", "threadpoolctl"}),
    # Copied beside what it reads, where nothing of ours is installed.
    "asdproto.systems.exported": (0, NUMPY | {"jax", "scipy"}),
    "asdproto.commands": (4, {"rich"}),
    "asdproto.cli": (5, set()),
    "asdproto.__main__": (5, set()),
    "experiments": (5, None),
}
# Rooms that stand side by side and do not know each other.
STRANGERS = (
    (
        ("asdproto.losses", "asdproto.prototypes", "asdproto.sampling", "asdproto.models"),
        ("asdproto.scoring", "asdproto.features", "asdproto.data", "asdproto.files"),
    ),
    (("asdproto.training",), ("asdproto.results",)),
)
# What a feature store and a collection need: no audio library, on any path.
WITHOUT_AUDIO = ("asdproto.data.collection", "asdproto.data.dataset")


def modules():
    """Name -> syntax tree of every module of the package and the experiments."""
    found = {}
    for package in ("asdproto", "experiments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = modules()


def imports_of(tree, known=()):
    """Dotted names that a module imports, anywhere in it; a name in ``known`` is taken whole."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written out in full here"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in known else node.module)
    return names


IMPORTS = {name: imports_of(tree, MODULES) for name, tree in MODULES.items()}
INNER = {name: {i for i in imports if i in MODULES} for name, imports in IMPORTS.items()}
# The package's own file is below everything; asked for the Detector, it loads it from above.
INNER["asdproto"].remove("asdproto.systems.detector")


def rule(name, table=FLOORS):
    prefixes = [p for p in table if name == p or name.startswith(p + ".")]
    return table[max(prefixes, key=len)]


def below(name, prefixes):
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def test_every_module_has_a_floor():
    unplaced = [
        name
        for name in MODULES
        if name.startswith("asdproto.") and not below(name, set(FLOORS) - {"asdproto"})
    ]
    assert not unplaced, "give these a floor and their libraries in FLOORS"
    unknown = {i for name in IMPORTS for i in IMPORTS[name] if i.startswith("asdproto")}
    assert unknown <= set(MODULES), "imported, but no such module"


def test_arrows_point_down():
    upward = [
        f"{name} (floor {rule(name)[0]}) imports {other} (floor {rule(other)[0]})"
        for name, inner in INNER.items()
        for other in inner
        if rule(other)[0] > rule(name)[0]
    ]
    assert not upward


def test_rooms_side_by_side_do_not_know_each_other():
    crossing = [
        f"{name} imports {other}"
        for left, right in STRANGERS
        for one, two in ((left, right), (right, left))
        for name in INNER
        if below(name, one)
        for other in INNER[name]
        if below(other, two)
    ]
    assert not crossing


def test_no_circle_of_modules():
    # A package's own file is run before its modules, but re-exporting them is no circle.
    graph = {name: inner - {name} for name, inner in INNER.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_no_circle_of_rooms():
    def room(name):
        parts = name.split(".")
        return ".".join(parts[:2] if parts[0] == "asdproto" else parts[:1])

    graph = {}
    for name, inner in INNER.items():
        graph.setdefault(room(name), set()).update({*map(room, inner)} - {room(name), "asdproto"})
    list(graphlib.TopologicalSorter(graph).static_order())


def test_each_module_imports_its_own_libraries_only():
    foreign = []
    for name, imports in IMPORTS.items():
        allowed = rule(name)[1]
        if allowed is None:
            continue
        top = {dotted.partition(".")[0] for dotted in imports} - {"asdproto"}
        foreign += [
            f"{name} imports {library}"
            for library in sorted(top - set(sys.stdlib_module_names) - allowed)
        ]
    assert not foreign


def test_collections_and_stores_never_reach_an_audio_library():
    reached, waiting = set(), list(WITHOUT_AUDIO)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += INNER[name]
    libraries = {dotted.partition(".")[0] for name in reached for dotted in IMPORTS[name]}
    assert libraries - set(sys.stdlib_module_names) <= {"numpy", "asdproto"}


def test_nothing_unpickles():
    """Lint knows the libraries that do, and ``eval``; numpy does where it is allowed to."""
    found = [
        f"{name}, line {node.value.lineno}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle"
        if getattr(node.value, "value", True) is not False
    ]
    assert not found


HEAVY = ("flax", "optax", "orbax", "librosa", "soundfile", "sklearn", "scipy.stats", "matplotlib",
         "jinja2")  # fmt: skip


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import asdproto.cli; asdproto.cli.command_parsers()", ("jax", "numpy", "rich", *HEAVY)),
        ("import asdproto.losses", HEAVY),
        (
            "from asdproto import features, scoring; from asdproto.data import collection, store; "
            "from asdproto.results import official, page, tables",
            ("jax", "rich", *HEAVY),
        ),
    ],
)
def test_an_import_loads_no_more_than_it_needs(statement, unwanted):
    code = f"{statement}\nimport sys\nprint([m for m in {unwanted!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
