"""The read executor, in virtual time over agents without a transport."""

import random
from dataclasses import replace

import pytest

from kvferry.core.errors import KvferryError, PeerError, TransportFailed
from kvferry.core.reasons import Reason
from kvferry_dataplane.paths import Path, Route
from kvferry_dataplane.reads.generation import Generation
from tests.unit.dataplane.fakes import WORD, Bench, FakeAgent, FakeRouting, Network, bounds, peer


def reason(bench: Bench, transfer: str) -> Reason | None:
    """Why a finished read failed."""
    failure: KvferryError | None = bench.outcomes[transfer].failure
    return None if failure is None else failure.reason


def test_the_word_is_read_after_the_last_byte() -> None:
    """A read posts its batches, then, when all have arrived, the lease word, and then succeeds."""
    bench = Bench()
    bench.submit("t", "a", batches=3)
    assert bench.run() != 0.0
    assert ["blocks", "blocks", "blocks", "word"] == [kind for _, kind, _ in bench.network.posted]
    assert reason(bench, "t") is None
    assert (300, 3) == (bench.outcomes["t"].received_bytes, bench.outcomes["t"].descriptor_count)


def test_a_copied_read_is_verified_in_the_step_that_sees_its_last_byte() -> None:
    """Whoever waits for a read by a copier, whose source has its word at once, waits for no further step."""
    agent = FakeAgent(Network(stuck={"a"}), 0, can_stop=True)
    routing = FakeRouting({"a": Route(Path.PACKED, "stream", "many pieces")})
    bench = Bench(routing=routing, lasting={Path.PACKED: agent})
    bench.submit("t", "a")
    bench.run()
    assert {} == bench.outcomes
    agent.network.stuck.clear()
    bench.executor.step(bench.now)
    assert reason(bench, "t") is None


def test_another_word_fences() -> None:
    """A word other than the lease's fails the read as FENCED."""
    bench = Bench(Network(words={"a": WORD + 1}))
    bench.submit("t", "a")
    bench.run()
    assert Reason.FENCED == reason(bench, "t")


def test_higher_priorities_go_first_and_equal_ones_take_turns() -> None:
    """Batches of the higher priority are posted before any of the lower; equal reads alternate."""
    bench = Bench(bounds=bounds(batch_bytes_max=100, step_bytes_max=100))
    for name, priority in (("low", 0), ("x", 5), ("y", 5)):
        bench.submit(name, name, batches=3, priority=priority)
    bench.run()
    posted = [source for source, kind, _ in bench.network.posted if kind == "blocks"]
    assert ["low", "low", "low"] == posted[-3:]
    assert {"x", "y"} == set(posted[:2]) == set(posted[2:4])


def test_a_waiting_read_begins_when_all_before_it_have_ended_at_once() -> None:
    """The executor asks to be called again as long as a read waits for its turn, also when none is active any more."""
    bench = Bench(bounds=bounds(active_reads_per_lane=1))
    bench.submit("t", "a")
    bench.submit("u", "a")
    for _ in range(30):
        if bench.executor.step(bench.now) != 0.0:
            break
    assert {"t", "u"} == set(bench.outcomes)


def test_a_stuck_read_ends_only_after_its_agent_is_destroyed() -> None:
    """At its deadline a stuck read waits for its batches, then its agent is given up, and only then is its end told."""
    bench = Bench(Network(stuck={"a"}))
    bench.submit("t", "a", batches=3, deadline=1.0)
    bench.run(1.05)
    assert {} == bench.outcomes
    assert [False] == [agent.closed for agent in bench.network.agents[:1]]
    bench.run(0.75)
    assert [True] == [agent.closed for agent in bench.network.agents[:1]]
    assert Reason.DEADLINE_EXCEEDED == reason(bench, "t")


def test_a_peer_that_was_lost_and_is_not_reached_again_is_lost_for_the_next_read_too() -> None:
    """A read that begins after its peer has died fails as the one before, not as if its transport were broken."""
    bench = Bench(Network(stuck={"a"}))
    bench.submit("t", "a")
    bench.run(0.1)
    bench.network.stuck.clear()
    bench.network.errors["a"] = PeerError("the peer disconnected", reason=Reason.PEER_LOST)
    bench.network.unreachable |= {(number, "a") for number in range(1, 9)}
    bench.submit("u", "a")
    bench.run(2.0)
    bench.submit("v", "a")
    bench.run(2.0)
    assert [Reason.PEER_LOST] * 3 == [reason(bench, transfer) for transfer in "tuv"]
    bench.network.unreachable.clear()
    bench.network.errors.clear()
    bench.submit("w", "a")
    bench.run(8.0)
    assert reason(bench, "w") is None


def test_other_reads_go_on_during_a_rollover() -> None:
    """While one peer is stuck and its agent is given up, reads from another peer succeed, on a new agent."""
    bench = Bench(Network(stuck={"a"}))
    bench.submit("t", "a", deadline=1.0)
    bench.run(1.2)
    bench.submit("u", "b")
    bench.run()
    assert reason(bench, "u") is None
    assert 1 == bench.executor.rollovers


def test_batches_of_other_reads_are_asked_again() -> None:
    """A batch that was in flight on a destroyed agent is posted again on the new one, and its read succeeds."""
    bench = Bench(Network(stuck={"a", "b"}))
    bench.submit("t", "a", deadline=1.0)
    bench.submit("u", "b")
    bench.run(1.6)
    assert Reason.DEADLINE_EXCEEDED == reason(bench, "t")
    assert "u" not in bench.outcomes
    bench.network.stuck.clear()
    bench.run(0.1)
    assert reason(bench, "u") is None
    assert 100 == bench.outcomes["u"].received_bytes


def test_a_suspect_peer_costs_one_rollover() -> None:
    """Further reads of a peer that is still stuck end on time without giving up another agent for blocks."""
    bench = Bench(Network(stuck={"a"}))
    for index in range(5):
        bench.submit(f"t{index}", "a", deadline=1.0 + index)
    bench.run(8.0)
    assert {Reason.DEADLINE_EXCEEDED} == {reason(bench, f"t{index}") for index in range(5)}
    blocks = [kind for _, kind, _ in bench.network.posted if kind == "blocks"]
    assert 5 == len(blocks)
    assert 2 >= bench.executor.rollovers


def test_a_suspect_peer_that_recovers_is_read_again() -> None:
    """Once a word of a suspect peer arrives, its reads go on."""
    bench = Bench(Network(stuck={"a"}))
    bench.submit("t", "a", deadline=1.0)
    bench.run(2.0)
    bench.submit("u", "a", deadline=9.0)
    bench.run(0.5)
    assert "u" not in bench.outcomes
    bench.network.stuck.clear()
    bench.run(0.1)
    assert reason(bench, "u") is None


def test_a_cancelled_read_that_is_not_stuck_needs_no_rollover() -> None:
    """An ordinary cancel waits for the batches in flight and posts nothing more."""
    bench = Bench(Network(stuck={"a"}))
    bench.submit("t", "a", batches=9)
    bench.run()
    bench.executor.cancel("t", bench.now)
    bench.network.stuck.clear()
    bench.run(0.05)
    assert Reason.CANCELLED == reason(bench, "t")
    assert 200 == bench.outcomes["t"].received_bytes
    assert 0 == bench.executor.rollovers


def test_a_lost_peer_fails_the_read_after_a_rollover() -> None:
    """A batch that fails says nothing about bytes still under way: the agent is destroyed before the end is told."""
    lost = PeerError("gone", reason=Reason.PEER_LOST)
    bench = Bench(Network(errors={"a": lost}))
    bench.submit("t", "a")
    bench.run(0.5)
    assert Reason.PEER_LOST == reason(bench, "t")
    assert bench.network.agents[0].closed


def test_queued_reads_end_at_their_deadline() -> None:
    """A read that waits behind others of its peer ends at its deadline without having asked for anything."""
    bench = Bench(Network(stuck={"a"}), bounds=bounds(batch_bytes_max=100, active_reads_per_lane=1))
    bench.submit("t", "a", deadline=9.0)
    bench.submit("u", "a", deadline=0.5)
    bench.run(0.55)
    assert Reason.DEADLINE_EXCEEDED == reason(bench, "u")
    assert () == bench.outcomes["u"].shares


def test_a_disconnected_peers_reads_are_lost_and_the_agent_forgets_it() -> None:
    """Disconnecting a peer ends its reads as PEER_LOST and makes the agents forget it."""
    bench = Bench()
    bench.executor.connect(peer("a"))
    bench.network.stuck.add("a")
    bench.submit("t", "a")
    bench.run()
    bench.executor.disconnect(peer("a"), bench.now)
    bench.run(1.0)
    assert Reason.PEER_LOST == reason(bench, "t")
    assert all("a" not in agent.connected for agent in bench.network.agents if not agent.closed)


def test_close_ends_everything() -> None:
    """Shutting down ends queued and running reads and destroys the agents."""
    bench = Bench(Network(stuck={"a"}))
    bench.submit("t", "a")
    bench.run()
    bench.submit("u", "a")
    bench.executor.close(bench.now)
    assert {Reason.NOT_READY} == {reason(bench, "t"), reason(bench, "u")}
    assert all(agent.closed for agent in bench.network.agents)


@pytest.mark.parametrize("seed", range(5))
def test_every_read_ends_by_its_deadline(seed: int) -> None:
    """Whatever sticks, fails, recovers or is cancelled, every read ends once, by 0.8 s after its deadline."""
    chance = random.Random(seed)  # noqa: S311 - repeatable chance, no secret
    bench = Bench()
    deadlines: dict[str, float] = {}
    for moment in range(400):
        if chance.random() < 0.3:
            name, deadline = f"t{moment}", bench.now + chance.uniform(0.05, 3.0)
            deadlines[name] = deadline
            bench.submit(name, chance.choice("abcd"), chance.randint(1, 12), deadline, chance.randint(0, 2))
        match chance.randint(0, 9):
            case 0:
                bench.network.stuck ^= {chance.choice("abcd")}
            case 1:
                bench.network.errors = {chance.choice("abcd"): PeerError("gone", reason=Reason.PEER_LOST)}
            case 2:
                bench.network.errors = {}
            case 3 if deadlines:
                bench.executor.cancel(chance.choice(list(deadlines)), bench.now)
            case _:
                pass
        bench.now += 0.02
        bench.executor.step(bench.now)
        late = [
            name for name, deadline in deadlines.items() if name not in bench.outcomes and bench.now > deadline + 0.8
        ]
        assert [] == late
    bench.run(5.0)
    assert set(deadlines) == set(bench.outcomes)


def packed_bench(network: Network) -> tuple[Bench, FakeAgent]:
    """A bench whose peer `a` is read over the packed path, and that path's agent."""
    agent = FakeAgent(network, 0, can_stop=True)
    packed = Route(Path.PACKED, "stream", "the only one")
    return Bench(network, routing=FakeRouting({"a": packed}), lasting={Path.PACKED: agent}), agent


def test_a_batch_that_can_be_stopped_needs_no_rollover() -> None:
    """A cancelled packed read asks for its batches to be stopped, ends as soon as they are, and keeps every agent."""
    bench, agent = packed_bench(Network(stuck={"a"}))
    bench.submit("t", "a", batches=2)
    bench.run()
    bench.executor.cancel("t", bench.now)
    bench.run()
    assert Reason.CANCELLED == reason(bench, "t")
    assert 2 == len(agent.stopped)
    assert 0 == bench.executor.rollovers
    assert 0 == bench.outcomes["t"].received_bytes
    assert not agent.closed


def test_a_failed_batch_of_a_lasting_agent_is_over() -> None:
    """A packed read that fails ends at once, without giving an agent up or suspecting the peer."""
    bench, _ = packed_bench(Network(errors={"a": PeerError("gone", reason=Reason.PEER_LOST)}))
    bench.submit("t", "a", batches=2)
    bench.run()
    assert Reason.PEER_LOST == reason(bench, "t")
    assert 0 == bench.executor.rollovers
    bench.network.errors.clear()
    bench.submit("u", "a")
    bench.run()
    assert reason(bench, "u") is None


def test_what_wakes_is_not_polled() -> None:
    """With only batches in flight whose agent tells of their end, the executor waits for that or for a deadline."""
    bench, _ = packed_bench(Network(stuck={"a"}))
    bench.submit("t", "a", batches=2, deadline=50.0)
    assert 50.0 == bench.run()


def test_what_a_part_took_is_told() -> None:
    """Routing learns the pieces and seconds of a part that has arrived as a whole."""
    bench = Bench()
    bench.submit("t", "a", batches=3)
    bench.run()
    assert [("a", 3, 0.0)] == bench.routing.learned


def test_a_read_waits_for_its_route_and_others_do_not() -> None:
    """A read whose route is being found out waits, without polling, while reads from other peers go on."""
    bench = Bench(routing=FakeRouting({"a": None}))
    bench.submit("t", "a", deadline=50.0)
    bench.submit("u", "b")
    assert 50.0 == bench.run()
    assert ["u"] == list(bench.outcomes)
    del bench.routing.routes["a"]
    bench.run()
    assert reason(bench, "t") is None


def test_a_read_without_a_route_fails() -> None:
    """A read whose path is impossible fails with the reason, and nothing was asked for."""
    bench = Bench(routing=FakeRouting(errors={"a": TransportFailed("path=local: another host")}))
    bench.submit("t", "a")
    bench.run()
    assert Reason.TRANSPORT_FAILED == reason(bench, "t")
    assert [] == bench.network.posted


def test_the_reads_of_a_peer_that_died_are_lost() -> None:
    """Reads under way and waiting end as PEER_LOST once their peer is known to be dead."""
    bench, _ = packed_bench(Network(stuck={"a"}))
    bench.submit("t", "a")
    bench.submit("u", "b")
    bench.run()
    bench.routing.lost = [peer("a")]
    bench.run()
    assert (Reason.PEER_LOST, None) == (reason(bench, "t"), reason(bench, "u"))


def test_several_failed_batches_of_a_lasting_agent_are_over() -> None:
    """A packed read whose batches in flight fail one after the other ends once, with the first failure."""
    bench, _ = packed_bench(Network(stuck={"a"}))
    bench.submit("t", "a", batches=3)
    bench.run()
    bench.network.errors["a"] = PeerError("gone", reason=Reason.PEER_LOST)
    bench.run()
    assert Reason.PEER_LOST == reason(bench, "t")


def test_waiting_reads_without_a_route_all_fail_at_once() -> None:
    """The executor asks to be called again until every waiting read of an impossible path has been told."""
    bench = Bench(routing=FakeRouting(errors={"a": TransportFailed("path=local: another host")}))
    for name in ("t", "u", "v"):
        bench.submit(name, "a")
    while bench.executor.step(bench.now) == 0.0:
        pass
    assert {"t", "u", "v"} == set(bench.outcomes)


def test_an_agent_that_cannot_learn_a_peer_is_replaced() -> None:
    """Reads of a peer that the agent does not reach fail, a new agent is made, and reads through that one succeed."""
    bench = Bench(Network(unreachable={(1, "a")}))
    bench.submit("t", "a")
    bench.run(0.1)
    bench.submit("u", "a")
    bench.run(0.1)
    assert (Reason.TRANSPORT_FAILED, None) == (reason(bench, "t"), reason(bench, "u"))
    assert [True, False] == [agent.closed for agent in bench.network.agents]


def test_a_peer_that_no_agent_learns_costs_an_agent_now_and_then() -> None:
    """A peer that every agent refuses does not make a new agent for each of its reads."""
    bench = Bench(Network(unreachable={(number, "a") for number in range(100)}))
    for turn in range(20):
        bench.submit(f"t{turn}", "a")
        bench.run(0.1)
    assert {Reason.TRANSPORT_FAILED} == {reason(bench, transfer) for transfer in bench.outcomes}
    assert 2 == len(bench.network.agents)


def test_two_names_of_one_agent_share_its_connection() -> None:
    """An agent that is known under two names, of two incarnations of its worker, is forgotten with the second only."""
    agent = FakeAgent(Network(), 1)
    generation = Generation(1, agent)
    first, second = peer("a"), replace(peer("a"), name="b")
    assert generation.connect(first)
    assert generation.connect(second)
    generation.forget(first)
    assert {"a"} == agent.connected
    generation.forget(second)
    assert set() == agent.connected
