"""A host without what `net.lean_imports` leaves out fails as the whole library does; in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

BEGIN = """
import trio
from paceline.net import lean_imports
from paceline.node import placeholders
placeholders.install(lean_imports.ROWS)
import paceline.dht.kademlia, paceline.net.host
"""


def run(body: str) -> str:
    done = subprocess.run([sys.executable, "-c", BEGIN + dedent(body)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_torn_stream_is_a_stream_error_not_a_type_error() -> None:
    body = """
    from types import SimpleNamespace
    from libp2p.network.stream.net_stream import NetStream
    from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamReset

    async def main():
        for error in (MuxedStreamEOF("end"), MuxedStreamReset("torn"), OSError("odd")):
            async def fail(_):
                raise error
            for use in ("read", "write"):
                stream = NetStream(SimpleNamespace(muxed_conn=None, read=fail, write=fail), None, None)
                try:
                    await getattr(stream, use)(b"" if use == "write" else 1)
                except Exception as caught:
                    print(type(caught).__name__)

    trio.run(main)
    """
    assert run(body).split() == ["StreamEOF", "StreamReset", "StreamReset", "StreamReset", "StreamError", "StreamError"]


def test_no_except_clause_names_a_placeholder() -> None:
    """Such a clause raises TypeError, but only when an error comes by: nothing shows it while the span loads."""
    body = """
    import ast, sys
    from pathlib import Path
    left_out = (placeholders.Absent, placeholders._Placeholder)
    for name, module in list(sys.modules.items()):
        file = vars(module).get("__file__") or ""
        if name.partition(".")[0] not in ("libp2p", "paceline") or not file.endswith(".py"):
            continue
        for clause in ast.walk(ast.parse(Path(file).read_text())):
            if not isinstance(clause, ast.ExceptHandler) or clause.type is None:
                continue
            for part in ast.walk(clause.type):
                if isinstance(part, ast.Name) and isinstance(vars(module).get(part.id), left_out):
                    print(name, clause.lineno, part.id)
    print("walked", "libp2p.network.stream.net_stream" in sys.modules)
    """
    assert run(body) == "walked True"
