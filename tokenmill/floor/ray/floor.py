"""The floor of a Ray cluster: implements ``ports.Floor`` over agents, with the head beside the controller.

Orders go to the agent of the node that the decision names; its reports come back in order of arrival and are
acknowledged when the journal has them. A node that is away longer than the grace is lost: its guard ends what
ran there, and only then are its jobs and replicas reported as ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenmill.control.state import EMPTY, State
from tokenmill.domain.effects import Effect, StartJob, StartReplica, StopJob, StopReplica
from tokenmill.domain.errors import NotLeaderError, ResourceError, TokenmillError
from tokenmill.domain.events import Event, JobExited, JobStarted, NodeJoined, NodeLost, ReplicaExited
from tokenmill.domain.factory import Factory, Node
from tokenmill.domain.work import JobStatus, ReplicaStatus
from tokenmill.floor.gangs import LOST_CODE
from tokenmill.floor.head import Head
from tokenmill.floor.node import NodeWorkers
from tokenmill.floor.ports import Clock, Current, EnergyAccount, Report
from tokenmill.floor.ray import cluster
from tokenmill.floor.ray.accounts import RayAccounts
from tokenmill.floor.ray.agent import Home, host_of
from tokenmill.floor.ray.local_cluster import LocalCluster
from tokenmill.floor.ray.member import Member
from tokenmill.floor.ray.spread import Spread, shares, spread_of
from tokenmill.spec.files import write_atomically
from tokenmill.spec.paths import Paths
from tokenmill.spec.settings import Settings, public_environment

log = logging.getLogger(__name__)

LOOK_S = 0.5
LOOPBACK = "127.0.0.1"
HELD_JOBS = (JobStatus.STARTING, JobStatus.RUNNING, JobStatus.STOPPING)
GONE_REPLICAS = (ReplicaStatus.PENDING, ReplicaStatus.FAILED, ReplicaStatus.STOPPED)


class RayFloor:
    """``address`` is that of a cluster, or ``ray`` for one that is started on this machine."""

    def __init__(
        self, paths: Paths, settings: Settings, factory_dir: Path, now_us: Clock, address: str
    ) -> None:
        self._paths = paths
        self._settings = settings
        self._factory_dir = factory_dir
        self._now_us = now_us
        self._address = address
        # The head's own processes; engines and jobs are all with agents, also those of this machine.
        self._own = NodeWorkers(paths, settings, factory_dir, now_us)
        self._head = Head(self._own.supervisor, paths, settings, factory_dir, now_us)
        self._local = LocalCluster(self._own.supervisor, paths) if address == "ray" else None
        self._nonce = secrets.token_hex(8)
        self._members: dict[str, Member] = {}
        self._spreads: dict[str, Spread] = {}
        self._away_us: dict[str, int] = {}
        self._refused: dict[str, str] = {}  # node -> why it may not work
        self._tasks: set[asyncio.Task[None]] = set()
        self._accounts = RayAccounts(self._members)
        self._report: Report
        self._current: Current
        self._state: State = EMPTY
        self._adopted = False

    async def start(self, report: Report, current: Current) -> None:
        """Join the cluster, starting it when it is ours, and find its nodes."""
        self._report, self._current = report, current
        nonce = self._paths.run / "nonce"
        await asyncio.to_thread(write_atomically, nonce, self._nonce.encode())
        await self._own.start(report, current)
        self._head.start(report)
        address = await self._local.start() if self._local is not None else self._address
        await asyncio.to_thread(cluster.join, address, f"tokenmill-{self._own.mark}")
        await self._look()

    async def adopt(self, state: State) -> None:
        """Take over what the agents run; ask each to end what ``state`` does not want."""
        self._spreads = {job: s for job in sorted(state.jobs) if (s := spread_of(state.jobs[job]))}
        self._state, self._adopted = state, True
        for name in _holding(state) - set(self._members):
            self._away_us.setdefault(name, self._now_us())  # it went while nobody led
        await self._head.adopt()
        await asyncio.gather(*(self._attach(member) for member in self._members.values()))
        await asyncio.to_thread(self._own.supervisor.kill_strays)
        self._spawn(self._watch(), "nodes")

    async def carry_out(self, effect: Effect) -> None:
        match effect:
            case StartReplica(node=node):
                self._send(node, effect)
            case StopReplica(replica):
                found = self._current().replicas.get(replica)
                self._send(found.node if found is not None else "", effect)
            case StartJob():
                self._spawn(self._start_gang(effect), f"start {effect.job}")
            case StopJob(job):
                found_job = self._current().jobs.get(job)
                for node in dict.fromkeys(found_job.nodes if found_job is not None else ()):
                    self._send(node, effect)
            case _:
                if not await self._head.carry_out(effect):
                    log.error("a floor cannot carry out %s", type(effect).__name__)

    def inventory(self, factory: Factory) -> tuple[Node, ...]:
        return tuple(
            cluster.place_of(member.ray, self._at_site(member.measured, factory), factory)
            for _, member in sorted(self._members.items())
        )

    def energy(self) -> EnergyAccount:
        return self._accounts

    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = dict(self._head.progress())
        for _, member in sorted(self._members.items()):
            found |= member.news.progress
        return found

    def url(self) -> str:
        return self._head.edge.url()

    async def close(self, stop_all: bool) -> None:
        """Leave the cluster. With ``stop_all`` the gateway ends first, then all work on every node."""
        await self._head.close(stop_all)
        if stop_all:
            ends = (member.close() for member in self._members.values())
            await asyncio.gather(*ends, return_exceptions=True)
        for task in (*self._tasks, *(m.pump for m in self._members.values() if m.pump is not None)):
            task.cancel()
        if stop_all:
            for member in self._members.values():
                await asyncio.to_thread(cluster.end_agent, member.agent)
        await asyncio.to_thread(cluster.leave)
        await self._own.leave()
        if stop_all and self._local is not None:
            await self._local.stop()
        await self._own.close(stop_all)

    # -- orders
    def _send(self, node: str, effect: Effect) -> None:
        """Pass an order on. One for a node that is away is dropped: ``attach`` or its loss comes later."""
        member = self._members.get(node)
        if member is not None:
            self._spawn(self._order(member, effect), f"order {node}")

    async def _order(self, member: Member, effect: Effect, share: Any = None) -> None:
        try:
            await member.carry_out(effect, self._bare(self._current()), share)
        except cluster.GONE:
            log.warning("node %s is away; it is told again when it is back", member.name)
        except TokenmillError as error:
            log.error("node %s: %s", member.name, error)

    async def _start_gang(self, effect: StartJob) -> None:
        """Give each node its ranks; rank 0's node says where they meet."""
        nodes = tuple(dict.fromkeys(effect.nodes))
        members = [self._members.get(node) for node in nodes]
        first = members[0]
        if first is None or None in members:
            return  # a node is away: its loss ends the job
        known = self._spreads.get(effect.job)
        if len(nodes) > 1 and (known is None or known.attempt < effect.attempt):
            self._spreads[effect.job] = Spread(effect.job, effect.attempt, nodes)
        one_machine = len({member.ray.address for member in members if member is not None}) == 1
        address = "127.0.0.1" if one_machine else first.ray.address
        try:
            port = await first.meeting_port() if len(nodes) > 1 else 0
        except (*cluster.GONE, TokenmillError) as error:
            log.error("job %s cannot start: %s", effect.job, error)
            return
        parts = shares(effect, address, port)
        orders = (self._order(self._members[node], effect, parts[node]) for node in nodes)
        await asyncio.gather(*orders)

    # -- reports
    async def _tell(self, node: str, event: Event) -> None:
        """Hand a node's event to the journal; shares of a gang become one event of the gang."""
        spread = self._spreads.get(event.job) if isinstance(event, JobStarted | JobExited) else None
        if spread is None or node not in spread.nodes or event.attempt != spread.attempt:  # type: ignore[union-attr]
            await self._report(event)
        elif isinstance(event, JobStarted):
            started = spread.start(node, event)
            if started is not None:
                await self._report(started)
        elif isinstance(event, JobExited):
            await self._share_ended(spread, node, event)

    async def _share_ended(self, spread: Spread, node: str, event: JobExited) -> None:
        ended = spread.end(node, event)
        if ended is None and spread.failed:
            for other in spread.running:
                self._send(other, StopJob(spread.job, 1_000_000))
        if ended is not None:
            self._spreads.pop(spread.job, None)
            await self._report(ended)
        spread.told.set() if ended is not None else await spread.told.wait()

    # -- nodes
    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._look()
            except (*cluster.GONE, ConnectionError, RuntimeError, TokenmillError) as error:
                log.error("the cluster cannot be read: %s", error)

    async def _look(self) -> None:
        """Compare Ray's nodes with ours: greet the new, and give up those that are away for too long."""
        found = await asyncio.to_thread(cluster.living)
        for name, node in sorted(found.items()):
            known = self._members.get(name)
            if known is None or known.ray.id != node.id:
                await self._greet(node)
        for name in sorted((set(self._members) | set(self._away_us)) - set(found)):
            away_us = self._now_us() - self._away_us.setdefault(name, self._now_us())
            if away_us >= self._settings.node_grace_us:
                await self._lose(name)

    async def _greet(self, node: cluster.RayNode) -> None:
        """Start or find the agent of a node; one that does not see our files, or lies open, may not work."""
        host = host_of(node.address, await asyncio.to_thread(cluster.head_address))
        root, factory_dir = str(self._paths.root), str(self._factory_dir)
        home = Home(node.name, root, factory_dir, host, public_environment(os.environ))
        try:
            check_network(node, host, self._settings)
            agent = await asyncio.to_thread(cluster.start_agent, node, home)
            measured = await cluster.call(agent.measure, node.name, "", self._nonce)
        except (*cluster.GONE, TokenmillError) as error:
            if self._refused.get(node.name) != str(error):
                log.error("node %s is left out: %s", node.name, error)
            self._refused[node.name] = str(error)
            return
        self._refused.pop(node.name, None)
        self._away_us.pop(node.name, None)
        old = self._members.get(node.name)
        if old is not None and old.pump is not None:
            old.pump.cancel()
        member = Member(node.name, node, agent, measured)
        self._members[node.name] = member
        if self._adopted:
            await self._attach(member)
            factory = self._current().factory
            place = cluster.place_of(node, self._at_site(measured, factory), factory)
            self._spawn(self._report(NodeJoined(self._now_us(), place)), f"join {node.name}")

    async def _attach(self, member: Member) -> None:
        """Lead an agent: it takes over what runs there; from now on we hear of it."""
        state = self._current() if self._current().epoch else self._state
        await member.attach(state.epoch, self._part(state, member.name))
        if member.pump is None or member.pump.done():
            member.pump = asyncio.create_task(self._listen(member), name=f"agent {member.name}")

    async def _listen(self, member: Member) -> None:
        """Hear an agent until it is gone; lead it again when Ray has started it anew."""
        while True:
            try:
                await member.listen(self._tell)
            except cluster.GONE:
                await asyncio.sleep(LOOK_S)
            except NotLeaderError as error:
                log.error("%s", error)
                return
            except ResourceError:
                state = self._current()
                await member.attach(state.epoch, self._part(state, member.name))

    async def _lose(self, name: str) -> None:
        """A node is gone for good, and so is all that ran there."""
        member = self._members.pop(name, None)
        self._away_us.pop(name, None)
        if member is not None and member.pump is not None:
            member.pump.cancel()
        reason = f"it was away for more than {self._settings.node_grace_us / 1e6:g} s"
        await self._report(NodeLost(self._now_us(), name, reason))
        state = self._current()
        for replica in [r for _, r in sorted(state.replicas.items()) if r.node == name]:
            if replica.status not in GONE_REPLICAS:
                await self._report(ReplicaExited(self._now_us(), replica.id, f"node {name} was lost"))
        for job in [j for _, j in sorted(state.jobs.items()) if name in j.nodes and j.status in HELD_JOBS]:
            event = JobExited(self._now_us(), job.id, job.attempt, LOST_CODE, None, f"node {name} was lost")
            self._spawn(self._tell(name, event), f"lost {job.id}")

    # -- what is sent of the state
    def _part(self, state: State, node: str) -> State:
        """What one node must know to take over its own work."""
        replicas = {r.id: r for r in state.replicas.values() if r.node == node}
        jobs = {j.id: j for j in state.jobs.values() if node in j.nodes}
        return replace(
            self._bare(state), replicas=EMPTY.replicas.update(replicas), jobs=EMPTY.jobs.update(jobs)
        )

    def _bare(self, state: State) -> State:
        return replace(EMPTY, factory=state.factory, epoch=state.epoch)

    def _at_site(self, measured: Node, factory: Factory) -> Node:
        return replace(measured, site=factory.sites[0].name if factory.sites else "")

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s: %r", task.get_name(), task.exception())


def _holding(state: State) -> set[str]:
    """The nodes on which something runs, as far as ``state`` knows."""
    replicas = {r.node for r in state.replicas.values() if r.status not in GONE_REPLICAS}
    return replicas.union(*(job.nodes for job in state.jobs.values() if job.status in HELD_JOBS))


def check_network(node: cluster.RayNode, host: str, settings: Settings) -> None:
    """Raise ``ResourceError`` when engines of ``node`` would listen on a network that nobody vouches for."""
    if host != LOOPBACK and settings.trust_network != "yes":
        raise ResourceError(
            f"engines of {node.name} would listen on {host} without encryption",
            expected="a network between the nodes that is the factory's alone",
            fix="Set TOKENMILL_TRUST_NETWORK=yes when it is.",
        )
