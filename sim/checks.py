"""What must hold after every step of a simulation, by the numbers of docs/protocol.md.

Watches machines from outside: the epochs it has seen them install, the states their shards hold, what their engines are
given. Trusts nothing that the machines say of themselves where it can look.
"""

from __future__ import annotations

from paceline.consistency.invariants import INVARIANTS
from paceline.consistency.stage import StageMachine
from paceline.sim.host import Host, StageKey, Step
from paceline.sim.reference import LAYERS, Reference
from paceline.wire.limits import MAX_HELD_FRAMES


class Broken(AssertionError):
    """A numbered invariant does not hold in a simulated run."""

    def __init__(self, number: int, detail: str) -> None:
        super().__init__(f"invariant {number} ({INVARIANTS[number]}): {detail}")
        self.number = number


class Watch:
    """Checks hosts against the undisturbed run. `journal`: the budget that hosts were given. `honest`: nobody breaks
    the protocol, so nobody may be said to.
    """

    def __init__(self, reference: Reference, journal: int, honest: bool = True) -> None:
        self._honest = honest
        self._owners: dict[int, str] = {}
        self._reference = reference
        self._journal = journal
        self._epochs: dict[int, tuple[StageMachine, int]] = {}
        """By a machine's identity; the machine is kept, so that its identity is not used again."""
        self._hosts: dict[int, tuple[Host, int]] = {}
        """The newest epoch that an incarnation of a host has seen."""

    def host(self, host: Host, busy: StageKey | None) -> None:
        """All of a host's machines. `busy`: the one whose work is with the engine, so that its KV may be ahead."""
        if len(host.held) > MAX_HELD_FRAMES:
            raise Broken(7, f"{host.me} holds {len(host.held)} frames")
        if self._honest and host.violations:
            raise Broken(4, f"{host.me} says that a peer broke the protocol, and none did")
        _, newest = self._hosts.get(id(host), (host, 0))
        for key, machine in host.machines.items():
            self._machine(host, key, machine, key == busy, newest)
        self._hosts[id(host)] = (host, max([newest, *(machine.epoch for machine in host.machines.values())]))

    def step(self, host: Host, step: Step) -> None:
        """What the engine was given just now."""
        given, machine = step.given, step.machine
        if (given.epoch, given.branch) != (machine.config.epoch, machine.branch):
            raise Broken(4, f"{host.me} runs positions of epoch {given.epoch:x}, at {machine.config.epoch:x}")
        if step.output.error:
            raise Broken(2, f"{host.me} was given unusable work: {step.output.error}")

    def _machine(self, host: Host, key: StageKey, machine: StageMachine, busy: bool, newest: int) -> None:
        _, seen = self._epochs.get(id(machine), (machine, 0))
        if not seen and machine.epoch < newest:
            raise Broken(4, f"{host.me} opens a stage at epoch {machine.epoch:x}, and has seen {newest:x}")
        if machine.config.epoch < seen or machine.epoch != machine.config.epoch:
            raise Broken(4, f"{host.me} went from epoch {seen:x} to {machine.config.epoch:x}")
        self._epochs[id(machine)] = (machine, machine.config.epoch)
        if self._owners.setdefault(machine.epoch, machine.owner) != machine.owner:
            raise Broken(8, f"epoch {machine.epoch:x} is installed by {machine.owner}, and by another owner elsewhere")
        journal = machine.journal
        if journal.nbytes > self._journal:
            raise Broken(7, f"{host.me} journals {journal.nbytes} bytes, {self._journal} are allowed")
        held = host.shard.length(key)
        if held < machine.length or (held > machine.length and not busy):
            raise Broken(2, f"{host.me} at {key[1]}: the machine counts {machine.length}, the KV holds {held}")
        if machine.length >= len(self._reference.states[0]):
            raise Broken(2, f"{host.me} at {key[1]} holds {machine.length} positions, the whole log has fewer")
        end = min(machine.end, LAYERS)
        if host.shard.tips(key, machine.length) != self._reference.tips(machine.layer, end, machine.length):
            raise Broken(2, f"{host.me} at {key[1]}: KV of {machine.length} positions is not what the log gives")
