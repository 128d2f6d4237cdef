"""The portal with several gateways at once: who lives by what, told in pieces; cuts in pieces; figures of all of them."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest
from portal_rig import World
from prometheus_client.parser import text_string_to_metric_families
from test_portal_serve import Served, read_event, run, serving, wait_for

from portico import wire
from portico.errors import Refused


def test_a_feed_ends_at_once_with_its_token(own_world: World) -> None:
    token, other = own_world.make_token("alice"), own_world.make_token("alice")
    who = own_world.accounts.authenticate_api_token(token, "")

    async def test(served: Served) -> None:
        async with (
            served.client("portal", Authorization=f"Bearer {token}") as client,
            served.client("portal", Authorization=f"Bearer {other}") as bystander,
            client.stream("GET", "/api/v1/feed") as feed,
            bystander.stream("GET", "/api/v1/feed") as other_feed,
        ):
            lines, other_lines = feed.aiter_lines(), other_feed.aiter_lines()
            assert await read_event(lines) == "hello"
            assert await read_event(other_lines) == "hello"
            begin = time.monotonic()
            await asyncio.to_thread(own_world.accounts.revoke_api_token, who, who.token_id)
            assert await read_event(lines) == "end"
            assert time.monotonic() - begin < 1
            own_world.sessions.changes.tell("alice")
            assert await read_event(other_lines) == "change", "only the one that was revoked"

    run(own_world, test)


def test_very_many_tags_come_in_several_notices(own_world: World) -> None:
    live = own_world.identify("alice")
    own_world.sign_in("alice")
    gone = own_world.identify("bob")
    own_world.accounts.sign_out(gone)
    ended = [f"session:k{number:011d}" for number in range(5000)]
    tags = sorted([f"sign-in:{live.sign_in_id}", f"sign-in:{gone.sign_in_id}", "user:alice", *ended])

    async def test(served: Served) -> None:
        gateway = await served.connect_gateway()
        for at in range(0, len(tags), 2000):
            await gateway.notify("hello", {"pid": 1, "tags": tags[at : at + 2000]})
        expected = {*ended, f"sign-in:{gone.sign_in_id}"}
        await wait_for(lambda: {tag for cut in served.cuts for tag in cut} == expected, 15)
        assert not gateway.closed
        gateway.close()

    run(own_world, test)


def test_a_cut_of_very_many_tags_goes_in_pieces(own_world: World) -> None:
    tags = [f"session:k{number:011d}" for number in range(9000)]

    async def test(served: Served) -> None:
        gateways = [await served.connect_gateway() for _ in range(2)]
        await asyncio.sleep(0.05)  # both are known
        own_world.accounts.on_cut(tags)
        await wait_for(lambda: sum(map(len, served.cuts)) == 2 * len(tags))
        assert max(map(len, served.cuts)) <= serving.TAGS_MAX
        assert {tag for cut in served.cuts for tag in cut} == set(tags)
        for gateway in gateways:
            assert not gateway.closed
            gateway.close()

    run(own_world, test)


def test_figures_are_those_of_every_gateway_that_answers(own_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "METRICS_TIMEOUT_S", 0.3)
    cookie = own_world.sign_in("root-of-all")
    asked = 0

    async def answer(op: str, args: dict[str, Any], fds: list[int]) -> wire.Answer | None:
        nonlocal asked
        if op != "metrics":
            raise Refused("unknown")
        asked += 1
        return {"pid": 1, "started": 7, "counters": {"requests_total": 5}, "gauges": {}, "histograms": {}}, ()

    async def hang(op: str, args: dict[str, Any], fds: list[int]) -> wire.Answer | None:
        await asyncio.sleep(60)
        return None

    async def read_figures(served: Served) -> dict[str, float]:
        async with served.client("portal", Cookie=f"portico={cookie}") as client:
            text = (await client.get("/api/v1/metrics")).raise_for_status().text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return {sample.name: sample.value for sample in samples if sample.labels.get("gateway") == str(os.getpid())}

    async def test(served: Served) -> None:
        assert await read_figures(served) == {}
        good = await wire.connect(served.paths["routes"], answer)
        figures: dict[str, float] = {}
        async with asyncio.timeout(5):
            while not figures:
                figures = await read_figures(served)
        assert figures["portico_gateway_up"] == 1
        assert figures["portico_gateway_requests_total"] == 5
        good.close()
        deaf = await wire.connect(served.paths["routes"], hang)
        begin = time.monotonic()
        async with asyncio.timeout(5):
            while figures != {"portico_gateway_up": 0}:
                figures = await read_figures(served)
        assert time.monotonic() - begin < 4
        assert not deaf.closed, "to be slow with figures is no reason to be let go"
        deaf.close()

    run(own_world, test)
    assert asked


def test_the_event_loops_lag_is_measured(own_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portico.portal.metrics.LAG_EVERY_S", 0.01)
    metrics = own_world.fastapi.state.context.metrics

    async def test() -> None:
        task = asyncio.create_task(metrics.watch_lag())
        await asyncio.sleep(0.03)
        time.sleep(0.15)  # what nobody may do
        await asyncio.sleep(0.03)
        task.cancel()

    own_world.run(test())
    samples = {sample.name: sample.value for family in metrics.lag.collect() for sample in family.samples}
    assert samples["portico_event_loop_lag_seconds_sum"] > 0.1
