"""A light stand-in for `gemini --acp`: speaks its protocol, calls the model endpoint, and stamps what it says.

Where memory ends the real CLI (some 200 MB each) a hundred of these run. What a turn does stands in the prompt, as
JSON: `{"chunks": 20, "interval": 0.2, "calls": 1}`. Each text chunk carries the moment it was written, each model call
the moments it began and ended; the clock is the machine's monotonic one, the same in every process. A `marker` in the
plan goes to the model instead of a long text.
"""

import http.client
import json
import os
import random
import sys
import threading
import time
import uuid
from typing import Any  # JSON-RPC is dynamic
from urllib.parse import urlsplit

MODEL = "gemini-2.5-flash"
_stdout = threading.Lock()


def send(message: dict[str, Any]) -> None:
    """Write one line."""
    line = json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")).encode() + b"\n"
    with _stdout:
        os.write(1, line)


def say(session: str, values: dict[str, object]) -> None:
    """Write one text chunk; `sent` is taken last, so that nothing of ours is counted as the service's."""
    text = json.dumps({**values, "sent": time.monotonic_ns()}) + "\n"
    update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}}
    send({"method": "session/update", "params": {"sessionId": session, "update": update}})


def call_model(url: str, key: str, text: str = "") -> dict[str, int]:
    """Make one streamed model call and return what lay between the upstream's moments and ours, in nanoseconds."""
    base = urlsplit(url)
    body = json.dumps({"contents": [{"role": "user", "parts": [{"text": text or "x" * 40_000}]}]}).encode()
    began = time.monotonic_ns()
    connection = http.client.HTTPConnection(base.hostname or "", base.port, timeout=60)
    try:
        headers = {"content-type": "application/json", "x-goog-api-key": key}
        path = f"{base.path.rstrip('/')}/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        if response.status != http.client.OK:
            return {"status": response.status}
        first, stamps = 0, []
        for line in response:
            if line.startswith(b"data: "):
                first = first or time.monotonic_ns()
                part = json.loads(line[6:])["candidates"][0]["content"]["parts"][0]
                stamps.append(json.loads(part["text"]))
        ended = time.monotonic_ns()
    finally:
        connection.close()
    return {
        "status": 200,
        "request": stamps[0]["arrived"] - began,
        "first": first - stamps[0]["sent"],
        "last": ended - stamps[-1]["sent"],
    }


def try_model(url: str, key: str, text: str) -> dict[str, int]:
    """Make a model call; status 0 tells that it broke, and the turn goes on, as the CLI's would with a retry."""
    try:
        return call_model(url, key, text)
    except (OSError, http.client.HTTPException, ValueError, LookupError):
        return {"status": 0}


def take_turn(request: int, session: str, prompt: str, key: str) -> None:
    """Do what the prompt says and answer it."""
    plan = json.loads(prompt[prompt.index("{") : prompt.rindex("}") + 1]) if "{" in prompt else {}
    for _ in range(plan.get("calls", 0)):
        say(session, {"call": try_model(os.environ["GOOGLE_GEMINI_BASE_URL"], key, plan.get("marker", ""))})
    for _ in range(plan.get("chunks", 1)):
        # Real streams do not beat in time with one another.
        time.sleep(plan.get("interval", 0.0) * random.uniform(0.5, 1.5))
        say(session, {})
    send({"id": request, "result": {"stopReason": "end_turn"}})


def main() -> None:
    """Answer requests until standard input ends."""
    key = ""
    keys: dict[str, str] = {}
    modes = {"availableModes": [{"id": "default", "name": "Default", "description": ""}], "currentModeId": "default"}
    models = {"availableModels": [{"modelId": MODEL, "name": MODEL}], "currentModelId": MODEL}
    for line in sys.stdin.buffer:
        message = json.loads(line)
        method, request, params = message.get("method"), message.get("id"), message.get("params") or {}
        match method:
            case "initialize":
                info = {"name": "gemini-cli", "title": "Gemini CLI", "version": "0.61.0"}
                can = {"loadSession": True, "promptCapabilities": {"image": True, "audio": True}}
                send({"id": request, "result": {"protocolVersion": 1, "agentInfo": info, "agentCapabilities": can}})
            case "authenticate":
                key = params.get("_meta", {}).get("api-key", "")
                send({"id": request, "result": {}})
            case "session/new" | "session/load":
                session = params.get("sessionId") or str(uuid.uuid4())
                keys[session] = key
                send({"id": request, "result": {"sessionId": session, "modes": modes, "models": models}})
            case "session/prompt":
                session = params["sessionId"]
                text = "".join(block.get("text", "") for block in params["prompt"])
                turn = threading.Thread(target=take_turn, args=(request, session, text, keys[session]))
                turn.start()
            case _ if request is not None and method is not None:
                send({"id": request, "result": {}})


if __name__ == "__main__":
    main()
