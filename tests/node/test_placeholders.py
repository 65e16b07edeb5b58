"""Placeholders, with a package of the test's own; each case in a process of its own, since nothing is put back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

BEGIN = """
import sys, warnings
from paceline.node import placeholders
placeholders.install([("heavy.part", "a test", {"decorate": lambda f: f})], hidden=["absent_package"])
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    heavy = tmp_path / "heavy"
    heavy.mkdir()
    (heavy / "__init__.py").write_text("")
    (heavy / "part.py").write_text("def double(x):\n    return 2 * x\nclass Base:\n    pass\nNAMES = ['a']\n")
    return tmp_path


def run(package: Path, body: str) -> str:
    script = f"{BEGIN}sys.path.insert(0, {str(package)!r})\n{dedent(body)}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_placeholder_may_be_named_derived_from_and_tested_against(package: Path) -> None:
    body = """
    from heavy.part import Base, decorate
    from heavy.part.below import Thing
    class Mine(Base):
        def f(self, x: Thing | None, y: "Thing[int]") -> int: return 1
    @decorate
    def kept(): return "kept"
    print(Mine().f(1, 2), isinstance(3, Thing), kept(), Mine.__mro__ == (Mine, object))
    """
    assert run(package, body) == "1 False kept True"


def test_a_call_imports_what_was_left_out(package: Path) -> None:
    body = """
    from heavy.part import double
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        print(double(21), len(caught), placeholders.suspected(TypeError()))
    """
    assert run(package, body) == "42 1 False"


def test_walking_one_is_refused_and_suspected(package: Path) -> None:
    body = """
    from heavy.part import NAMES
    for use in (list, len, lambda names: "a" in names):
        try:
            use(NAMES)
        except placeholders.PlaceholderUsed as error:
            print(placeholders.suspected(error), placeholders.suspected(ExceptionGroup("", [error, OSError()])))
    """
    assert run(package, body).split() == ["True", "False"] * 3


def test_a_hidden_package_looks_not_installed(package: Path) -> None:
    body = """
    from importlib.util import find_spec
    try:
        import absent_package
    except ModuleNotFoundError:
        print(find_spec("absent_package") if "absent_package" not in sys.modules else sys.modules["absent_package"])
    """
    assert run(package, body) == "None"
