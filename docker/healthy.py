"""Exits 0 where a node or meeting point is announced (its ready file exists) and its control port still talks.

A port that accepts and says nothing is a process that hangs. No Paceline is imported: this runs every few seconds.
"""

import os
import socket
import sys

READY, PORT = sys.argv[1], int(sys.argv[2])
GREETING = b"\x13/multistream/1.0.0\n"
"""How every libp2p connection begins, from both sides."""

if not os.path.exists(READY):
    sys.exit("not announced yet")
with socket.create_connection(("127.0.0.1", PORT), timeout=3) as connection:
    connection.sendall(GREETING)
    if not connection.recv(len(GREETING)):
        sys.exit("the control port closed without a word")
