"""The rules of the house, as tests: who may import whom, what a pure room may not know, and how large a piece may be.

Reads the source; imports nothing of it except in the two tests that say so.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ALL = frozenset(
    ("cli", "client", "consistency", "dht", "engine", "gateway", "net", "node", "routing", "sim", "store", "wire")
)


@dataclass(frozen=True)
class Room:
    """`may`: rooms, or single modules of rooms, that this one may import. `third`: third-party packages."""

    may: frozenset[str]
    third: frozenset[str]
    extra: str = ""
    """The optional dependency groups that an install needs for this room."""


def room(may: str = "", third: str = "", extra: str = "") -> Room:
    return Room(frozenset(may.split()), frozenset(third.split()), extra)


# The table of docs/architecture.md. base58, multiaddr and noise are how libp2p spells keys, addresses and handshakes;
# msgspec is what the messages in wire/ are made of.
ROOMS = {
    "wire": room(third="msgspec"),
    "consistency": room("wire"),
    "routing": room("wire", "numpy"),
    "store": room("wire", "msgspec platformdirs cryptography"),
    "net": room("wire", "trio libp2p cryptography multiaddr noise base58"),
    "dht": room("wire net", "trio libp2p cryptography multiaddr msgspec"),
    "engine": room(
        "wire store",
        "torch triton transformers safetensors gguf accelerate numpy tokenizers jinja2 psutil huggingface_hub",
        extra="node",
    ),
    "node": Room(
        ALL - {"client", "gateway", "cli"},
        frozenset(("trio", "msgspec", "psutil", "llguidance", "prometheus_client")),
        extra="node",
    ),
    "client": room(
        "wire routing consistency net dht store", "trio anyio sniffio msgspec tokenizers jinja2 numpy platformdirs"
    ),
    "gateway": room(
        "wire client",
        "trio msgspec starlette hypercorn prometheus_client opentelemetry",
        extra="gateway telemetry",
    ),
    "sim": room("wire routing consistency client.generation engine.toy engine.shard engine.sampling engine.draw"),
    "cli": room(" ".join(sorted(ALL)), "typer click rich trio anyio msgspec packaging platformdirs psutil"),
}

PURE = ("consistency", "routing", "sim")
WORLD = {"asyncio", "datetime", "logging", "random", "secrets", "socket", "subprocess", "threading", "time", "trio"}
IMPURE = WORLD | {"torch"}
TORCH_FREE = ("wire", "routing", "consistency", "net", "dht", "store", "client", "cli", "sim")
TORCH_FREE_FILES = ("engine.shard", "engine.toy")

BROUGHT = {"triton": ["torch"]}
"""What another dependency brings, in the one version that fits it: torch for CUDA needs its own Triton."""

COMPUTED = "a computed name"
COMPUTED_IN = {
    "engine/family.py": "a family's modeling module stands beside its configuration",
    "node/placeholders.py": "fetches what was left out, by the name it was left out under",
}
"""The only files that may import by a computed name, and why."""

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400


@dataclass(frozen=True)
class Source:
    """One file of a room."""

    path: Path

    @property
    def where(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def room(self) -> str:
        return self.path.relative_to(ROOT).parts[0]

    @property
    def module(self) -> str:
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(("paceline", *(part for part in parts if part != "__init__")))

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def tree(self) -> ast.Module:
        return _parse(self.path)


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def sources(*rooms: str) -> list[Source]:
    return [Source(path) for name in rooms or sorted(ROOMS) for path in sorted((ROOT / name).rglob("*.py"))]


def written_tests() -> list[Source]:
    return [Source(path) for path in sorted((ROOT / "tests").rglob("*.py"))]


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """``(line, module)`` of every import at any depth, those under TYPE_CHECKING and by name included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module is not None
            if re.fullmatch(r"paceline(\.\w+)?", node.module):
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            by_name = bool(node.args) and isinstance(node.args[0], ast.Constant)
            if by_name:
                yield node.lineno, ast.literal_eval(node.args[0])
            else:
                yield node.lineno, COMPUTED


def named_imports(source: Source) -> list[tuple[int, str]]:
    """A file's imports; a computed name only where the table allows it."""
    found = list(imports(source.tree))
    assert source.where in COMPUTED_IN or all(module != COMPUTED for _, module in found), source.where
    return [(line, module) for line, module in found if module != COMPUTED]


def allowed(name: str, module: str) -> bool:
    rules = ROOMS[name]
    top, _, inner = module.partition(".")
    if top != "paceline":
        return top in sys.stdlib_module_names or top in rules.third
    return any(f"{inner}.".startswith(f"{other}.") for other in (name, *rules.may))


# --- imports --------------------------------------------------------------------------------------------------


def test_every_room_is_in_the_table_and_in_the_package() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "bench"}
    packages = _pyproject()["tool"]["setuptools"]["packages"]
    assert folders == set(ROOMS) == ALL == {name.removeprefix("paceline.") for name in packages}
    assert all((ROOT / name / "py.typed").is_file() for name in ROOMS)


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_imports_follow_the_table(name: str) -> None:
    wrong = [
        f"{source.where}:{line}: {module}"
        for source in sources(name)
        for line, module in named_imports(source)
        if not allowed(source.room, module)
    ]
    assert not wrong


def test_the_table_itself_has_no_cycle() -> None:
    waiting = {name: {module.split(".")[0] for module in rules.may} - {name} for name, rules in ROOMS.items()}
    while ready := {name for name, below in waiting.items() if not below & waiting.keys()}:
        waiting = {name: below for name, below in waiting.items() if name not in ready}
    assert not waiting


def test_the_rule_sees_imports_that_hide() -> None:
    hidden = 'def f():\n    import torch\n    __import__("socket")\nif TYPE_CHECKING:\n    from paceline import node\n'
    found = [module for _, module in imports(ast.parse(hidden))]
    assert sorted(found) == ["paceline.node", "socket", "torch"]
    assert not allowed("wire", "torch")
    assert not allowed("wire", "paceline.node")
    assert not allowed("sim", "paceline.client.shell")
    assert allowed("sim", "paceline.client.generation")


@pytest.mark.parametrize("name", PURE)
def test_pure_rooms_know_no_clock_no_chance_and_no_world(name: str) -> None:
    found = [
        (source.where, module.partition(".")[0])
        for source in sources(name)
        for _, module in named_imports(source)
        if module.partition(".")[0] in IMPURE
    ]
    seeded = {where for where, module in found if name == "sim" and module == "random"}
    assert [pair for pair in found if pair[0] not in seeded or pair[1] != "random"] == []
    assert len(seeded) <= 1, "randomness enters sim through one file"
    for where in seeded:
        used = set(re.findall(r"\brandom\.(\w+)", (ROOT / where).read_text(encoding="utf-8")))
        assert used <= {"Random"}, f"{where} draws from the global generator"


def test_wire_client_and_simulation_load_without_what_only_a_node_has() -> None:
    """Imports every module of the client's rooms in a process where the node's libraries cannot be imported."""
    modules = [source.module for source in sources(*TORCH_FREE)]
    modules += [f"paceline.{name}" for name in TORCH_FREE_FILES]
    program = f"""
import importlib, sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(_node_only())!r}:
            raise ImportError(f"{{name}} belongs to a node")

sys.meta_path.insert(0, Forbidden())
for module in {modules!r}:
    importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr


# --- dependencies ---------------------------------------------------------------------------------------------


def _pyproject() -> dict:  # type: ignore[type-arg]
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _names(requirements: list[str]) -> set[str]:
    return {_plain(re.split(r"[^\w.-]", requirement, maxsplit=1)[0]) for requirement in requirements}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _node_only() -> set[str]:
    project = _pyproject()["project"]
    return _names(project["optional-dependencies"]["node"]) - _names(project["dependencies"])


def test_what_a_room_imports_its_install_declares() -> None:
    project = _pyproject()["project"]
    homes = metadata.packages_distributions()
    missing = set()
    for source in sources():
        groups = [project["optional-dependencies"][extra] for extra in ROOMS[source.room].extra.split()]
        declared = _names([*project["dependencies"], *(name for group in groups for name in group)])
        for line, module in named_imports(source):
            top = module.partition(".")[0]
            known = {_plain(home) for home in BROUGHT.get(top) or homes.get(top, [top])} & declared
            if not known and top != "paceline" and top not in sys.stdlib_module_names:
                missing.add(f"{source.where}:{line}: {top}")
    assert not missing


def test_every_direct_dependency_is_pinned_once() -> None:
    project = _pyproject()["project"]
    declared = _names(project["dependencies"]).union(*map(_names, project["optional-dependencies"].values()))
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert sorted(_plain(line.split("==")[0]) for line in lines) == sorted(declared)


# --- size and manner ------------------------------------------------------------------------------------------


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{source.where}:{node.lineno}: {node.name} has {size} lines"
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (size := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long


def test_files_hold_one_noun() -> None:
    counts = {source.where: len(source.text.splitlines()) for source in sources()}
    assert not {where: count for where, count in counts.items() if count > MAX_FILE_LINES}


def test_files_open_with_what_they_know() -> None:
    assert not [source.where for source in sources() if source.text.strip() and not ast.get_docstring(source.tree)]


def test_broad_except_lives_at_one_named_boundary() -> None:
    """Net may translate whatever a library raises; one file of it may also swallow, and says so on the line."""
    broad = [
        (source, node)
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ExceptHandler) and _is_broad(node)
    ]
    assert not [f"{source.where}:{node.lineno}" for source, node in broad if source.room != "net"]
    swallow = [(source, node) for source, node in broad if not isinstance(node.body[-1], ast.Raise)]
    unnamed = [(s, n) for s, n in swallow if "noqa: BLE001" not in s.text.splitlines()[n.lineno - 1]]
    assert not [f"{source.where}:{node.lineno}" for source, node in unnamed]
    assert len({source.where for source, _ in swallow}) <= 1, "the boundary is one file"


def _is_broad(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    if isinstance(last, ast.Raise) and last.exc is None:
        return False
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in caught)


def test_every_error_has_a_code_of_its_own() -> None:
    classes = [node for source in sources() for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)]
    errors = {"PacelineError"}
    while more := {c.name for c in classes if {ast.unparse(base) for base in c.bases} & errors} - errors:
        errors |= more
    codes = [_own_code(c) for c in classes if c.name in errors]
    assert None not in codes
    assert len(set(codes)) == len(codes) == len(errors)


def _own_code(error: ast.ClassDef) -> str | None:
    for node in error.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and [ast.unparse(t) for t in targets if t] == ["code"]:
            return str(ast.literal_eval(node.value)) if node.value else None
    return None


def test_nothing_is_left_for_later() -> None:
    later = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error")))
    assert not [
        f"{source.where}:{number}"
        for source in (*sources(), *written_tests())
        for number, line in enumerate(source.text.splitlines(), 1)
        if later.search(line)
    ]


def test_tests_do_not_sleep_or_skip() -> None:
    banned = {
        "time.sleep",
        "pytest.skip",
        "pytest.xfail",
        "pytest.mark.skip",
        "pytest.mark.skipif",
        "pytest.mark.xfail",
    }
    assert not [
        f"{source.where}:{node.lineno}"
        for source in written_tests()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in banned
    ]


def test_committed_text_names_no_registry_and_no_machine_path() -> None:
    banned = re.compile("|".join(("pypi" + r"\.org", "python" + r"hosted\.org", "/wo" + "rk/", "/ro" + "ot/")))
    files = [ROOT / name for name in ("Makefile", "constraints.txt", "pyproject.toml", ".ci/run")]
    files += [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *(source.path for source in sources())]
    assert not [str(path.relative_to(ROOT)) for path in files if banned.search(path.read_text(encoding="utf-8"))]
