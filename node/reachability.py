"""Whether others can dial this node: asked of members, and acted on.

    ============  =================================================================  ============================
    state         means                                                              what is announced
    ============  =================================================================  ============================
    unknown       nobody could be asked, or the answers contradict each other        as before
    reachable     most of the asked have dialled the control port and seen the key   the ports that were proved
    relayed       they could not; a member relays                                    circuits; no server of the DHT
    unreachable   they could not, and nobody relays                                  as before, with a warning
    ============  =================================================================  ============================

Asked again every ten minutes, soon after the addresses have changed, and every half minute while nothing is known.
Knows votes and consequences. Refuses to know sockets (`net.doors`) and the rules of asking (`net.dialback`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import trio

from paceline.net.dialback import Doors, Verdict, choose, examine, leads_here, unreachable
from paceline.wire.errors import Unreachable

if TYPE_CHECKING:
    from paceline.node.node import Node

_log = logging.getLogger("paceline.node")

State = Literal["unknown", "reachable", "relayed", "unreachable"]

AGAIN_S = 600.0
UNKNOWN_AGAIN_S = 30.0
LOOK_S = 30.0
"""How often the machine's own addresses are looked at."""

AGREED = 2
"""Members that must have reached the node at an address that it did not know to be its own, before it tells others."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known now. `warning`: what is wrong, with its cure."""

    state: State = "unknown"
    verdict: Verdict | None = None
    warning: Unreachable | None = None
    checked_at: float = 0.0
    """Unix seconds."""


class Reachability:
    """One node's. `unix_time` dates the standing; `rng` jitters, and draws whom to ask."""

    def __init__(
        self, node: Node, doors: Doors, unix_time: Callable[[], float], rng: random.Random | None = None
    ) -> None:
        self.standing = Standing()
        self._node = node
        self._doors = doors
        self._unix_time = unix_time
        self._rng = rng or random.Random()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            hosts = await self._doors.look()
            await self.check()
            await self._rest(hosts)

    async def _rest(self, hosts: tuple[str, ...]) -> None:
        """Until the next check is due: jittered, and cut short where `hosts` are the machine's no more."""
        known = self.standing.state != "unknown"
        until = trio.current_time() + (AGAIN_S if known else UNKNOWN_AGAIN_S) * self._rng.uniform(0.8, 1.2)
        while (left_s := until - trio.current_time()) > 0.0:
            await trio.sleep(min(LOOK_S, left_s))
            if await self._doors.look() != hosts:
                return

    async def check(self) -> None:
        """Ask, take the consequences, and announce where they change anything."""
        doors = self._doors
        members = [at for at in self._node.directory.everybody() if at.peer != self._node.me]
        found = await examine(doors, choose(members, self._rng), doors.ports)
        before, known_as = doors.address, self.standing.state
        if found.control is None:
            self.standing = Standing(known_as, found, self.standing.warning, self._unix_time())
        elif found.control:
            self._reached(found)
        else:
            await self._not_reached(found)
        if self.standing.state != known_as:
            told = {"node": self._node.me, "state": self.standing.state}
            warning = self.standing.warning
            _log.log(logging.WARNING if warning else logging.INFO, str(warning) if warning else "reachability", told)
        if doors.address != before:
            await self._node.offering.announce()

    def _reached(self, found: Verdict) -> None:
        doors = self._doors
        strange = [(host, count) for host, count in found.hosts if host not in doors.hosts and leads_here(host)]
        also = () if doors.named else tuple(host for host, count in strange if count >= AGREED)
        doors.go_direct(data=found.data is not False, also=also)
        warning = None
        if doors.ports.data and found.data is False:
            warning = Unreachable(
                f"others reach the control port but not the data port {doors.ports.data}: frames take a slower way",
                cure=f"open TCP port {doors.ports.data} in firewall and router (--data-port chooses it)",
            )
        elif strange and len(strange) == len(found.hosts) and not doors.named and not also:
            warning = Unreachable(
                f"others reach this machine at {strange[0][0]}, which it does not announce",
                cure=f"announce it: --announce {strange[0][0]}",
            )
        self.standing = Standing("reachable", found, warning, self._unix_time())

    async def _not_reached(self, found: Verdict) -> None:
        doors = self._doors
        members = [at for at in self._node.directory.everybody() if at.peer != self._node.me]
        if await doors.go_relayed(members, data=bool(found.data)):
            self.standing = Standing("relayed", found, None, self._unix_time())
            return
        if doors.relayed:
            doors.go_direct()  # its relays are gone: who is beside it may still come
        self.standing = Standing("unreachable", found, unreachable(doors.ports.control), self._unix_time())

    def account(self) -> dict[str, Any]:
        """For the status."""
        standing, found = self.standing, self.standing.verdict
        return {
            "state": standing.state,
            "control": found.control if found else None,
            "data": found.data if found else None,
            "reached_at": [host for host, _ in found.hosts] if found else [],
            "asked": found.asked if found else 0,
            "answered": found.answered if found else 0,
            "checked_at": standing.checked_at,
            "warning": standing.warning.message if standing.warning else "",
            "cure": standing.warning.cure if standing.warning else "",
        }
