"""The practice model behind the gateway, over the network."""

from __future__ import annotations

import json
from pathlib import Path

from sandboxd.gateway.config import GatewayConfig
from sandboxd.model.usage import UsageState
from sandboxd.practice.server import PracticeServer
from tests.fake_gemini import FakeGemini
from tests.gateway_world import GatewayWorld, texts


async def test_the_practice_model_is_metered_and_priced_like_the_api(tmp_path: Path) -> None:
    async with PracticeServer(delay=0) as practice:
        config = GatewayConfig(upstream_url=practice.url, spool_directory=tmp_path / "spool")
        async with GatewayWorld(fake=FakeGemini(), config=config).running() as world:
            status, body = await world.ask("hello")
            counted, _ = await world.ask("hello", method="countTokens")
            whole, answer = await world.ask("hello", method="generateContent")

    last = json.loads(body.split(b"data: ")[-1])
    streamed = world.rows[0]
    assert (status, counted, whole) == (200, 200, 200)
    assert texts(body)
    assert streamed.tokens.total == last["usageMetadata"]["totalTokenCount"]
    assert (streamed.state, streamed.model_version) == (UsageState.SETTLED, "gemini-2.5-flash-practice")
    assert streamed.price_id == "practice-as-if-gemini-2.5-flash"
    assert json.loads(answer)["candidates"][0]["finishReason"] == "STOP"


async def test_the_practice_model_refuses_what_it_does_not_speak(tmp_path: Path) -> None:
    async with PracticeServer(delay=0) as practice:
        config = GatewayConfig(upstream_url=practice.url, spool_directory=tmp_path / "spool")
        async with GatewayWorld(fake=FakeGemini(), config=config).running() as world:
            found = []
            for path, data in (("x:embedContent", b"{}"), ("x", b"{}"), ("x:generateContent", b"[")):
                async with world.http.post(f"{practice.url}/v1beta/models/{path}", data=data) as answer:
                    found.append(answer.status)

    assert found == [404, 400, 400]
