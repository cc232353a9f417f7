# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202, C901, E501, FURB167, PTH123, RET503, SIM115, T201, UP035, UP037
# The line above and below: a plain script of the standard library, shared with other projects as one file; it is driven by
# tests that are checked, and annotating its JSON adds nothing.
"""Fake Gemini API server: deterministic, offline, standard library only.

It answers the part of the Gemini Developer API (v1beta) that the real Gemini CLI
(@google/gemini-cli) uses, so the unmodified CLI can be driven end to end in tests:

    POST /v1beta/models/{model}:generateContent
    POST /v1beta/models/{model}:streamGenerateContent?alt=sse
    POST /v1beta/models/{model}:countTokens
    POST /v1beta/models/{model}:embedContent | :batchEmbedContents
    GET  /v1beta/models        GET /v1beta/models/{model}
    GET  /__fake/requests      (what was received, as JSON: method, path, headers, body, status, usage)
    POST /__fake/reset         (forget received requests and retry counters)

Point the CLI at it with GOOGLE_GEMINI_BASE_URL=http://127.0.0.1:PORT and any GEMINI_API_KEY.

What it replies is chosen by the *text of the last user prompt*.  A directive
`fake:NAME` or `fake:NAME(key=value; key=value)` picks a script; a prompt without one is
echoed.  A script is a function from (args, step) to a Reply; `step` is the number of
function responses the client has sent since that prompt, so tool loops advance by
themselves and a resumed conversation replays the same way.

    fake:text(chunks=3; delay=0)           plain text in N chunks
    fake:say(text=...)                     exactly that text
    fake:think                             a thought part, then text (thoughtsTokenCount)
    fake:cached                            cachedContentTokenCount on the answer
    fake:tooltokens                        toolUsePromptTokenCount on the answer
    fake:shell(cmd=echo hi)                run_shell_command, then text
    fake:write(path=a.txt; content=hi)     write_file, then text
    fake:read(path=a.txt)                  read_file, then text
    fake:call(name=x; args={"a":1})        any function call, then text
    fake:multi(path=a.txt; content=hi; cmd=ls)   write_file, run_shell_command, then text
    fake:parallel(cmd=echo a; cmd2=echo b) two function calls in one response, then text
    fake:noid(cmd=echo a; cmd2=echo b)     like parallel, but the calls carry no id (older models)
    fake:slow(chunks=5; delay=1)           text, DELAY seconds between chunks
    fake:hang                              one chunk, then silence until the client goes away
    fake:429(times=2; retry=0.2)           rate limit with RetryInfo TIMES times, then text
    fake:quota                             429 with a PerDay QuotaFailure, always
    fake:500(times=2) fake:503(times=2)    server error TIMES times, then text (times=-1: always)
    fake:400(message=...)                  400 INVALID_ARGUMENT
    fake:badkey                            400 API_KEY_INVALID
    fake:401 | fake:402                    401 UNAUTHENTICATED | 402 (what a gateway may answer)
    fake:denied                            403 PERMISSION_DENIED
    fake:notfound                          404 model not found
    fake:toolong                           400 "input token count exceeds the maximum"
    fake:malformed                         an SSE chunk that is not JSON
    fake:truncate                          the connection is cut in the middle of the stream
    fake:nofinish                          the stream ends with no finishReason
    fake:empty                             STOP with no parts
    fake:safety | fake:maxtokens | fake:recitation | fake:malformedcall    other finishReasons
    fake:blocked                           promptFeedback.blockReason, no candidates
    fake:gated                             two chunks; the second when the test sets `gate`
    fake:gzip                              the stream is compressed although identity was asked for
    fake:redirect(to=http://...)           302 with a Location header
    fake:reset                             the connection is cut before any answer
    fake:silent                            no answer at all until the client goes away
    fake:leak                              an answer that repeats the API key, cut in the middle, and in a header
    fake:leakerror                         a 400 whose message repeats the API key
    fake:huge(mb=80)                       a stream of that many megabytes
    fake:hugeevent(mb=40)                  one event of that many megabytes, then usage
    fake:midstreamerror                    an error object inside a stream with status 200

Token counts are deterministic and do not depend on the client's system prompt:
promptTokenCount = 100 + 10 * len(contents); candidatesTokenCount = words in the reply
(5 for each function call); totalTokenCount = prompt + candidates + thoughts + tooluse.
As with the real API every stream chunk carries *cumulative* usageMetadata: the last one
seen is the bill, and chunks are never to be added up.

Requests that ask for JSON (responseMimeType application/json: the CLI's router,
next-speaker and loop checks) get the smallest value that fits their schema.

Use as a program:   fake_gemini.py --port 0 --log requests.jsonl [--key SECRET]
or in a test:       with FakeGemini(key="real-key") as fake: ... fake.url, fake.requests
With `key` set, any other key is answered like the real service does (400 API_KEY_INVALID;
403 when there is none).
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable
from urllib.parse import parse_qs, urlsplit

DIRECTIVE = re.compile(r"fake:([A-Za-z0-9_]+)(?:\((.*?)\)(?=\s|$|[.\"'<]))?", re.S)
RPC = "type.googleapis.com/google.rpc."
DAY_QUOTA = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
MINUTE_QUOTA = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"


@dataclass
class Reply:
    """One answer of the model: parts (sent a chunk each), or an HTTP error."""

    parts: list[dict] = field(default_factory=list)
    finish: str | None = "STOP"
    finish_message: str | None = None
    delay: float = 0.0  # seconds before each chunk after the first
    thoughts: int = 0
    cached: int = 0
    tooluse: int = 0
    error: tuple[int, dict] | None = None  # (status, body)
    headers: dict[str, str] = field(default_factory=dict)
    fault: str | None = None  # 'malformed' | 'truncate' | 'hang', after the first chunk
    blocked: str | None = None
    special: str | None = None  # answered by _special, with args
    args: dict[str, str] = field(default_factory=dict)


def text_parts(text: str, chunks: int = 1) -> list[dict]:
    words = re.findall(r"\S+\s*", text) or [text]
    size = max(1, -(-len(words) // max(1, chunks)))
    return [{"text": "".join(words[i : i + size])} for i in range(0, len(words), size)]


def call_part(name: str, args: dict, call_id: str) -> dict:
    return {"functionCall": {"id": call_id, "name": name, "args": args}}


def api_error(code: int, status: str, message: str, details: list | None = None) -> tuple[int, dict]:
    body: dict[str, Any] = {"code": code, "message": message, "status": status}
    if details:
        body["details"] = details
    return code, {"error": body}


def bad_key() -> tuple[int, dict]:
    return api_error(
        400,
        "INVALID_ARGUMENT",
        "API key not valid. Please pass a valid API key.",
        [
            {
                "@type": RPC + "ErrorInfo",
                "reason": "API_KEY_INVALID",
                "domain": "googleapis.com",
                "metadata": {"service": "generativelanguage.googleapis.com"},
            }
        ],
    )


def rate_limit(retry: float, quota_id: str) -> tuple[int, dict]:
    return api_error(
        429,
        "RESOURCE_EXHAUSTED",
        f"You exceeded your current quota, please check your plan and billing details. Please retry in {retry}s.",
        [
            {
                "@type": RPC + "QuotaFailure",
                "violations": [
                    {
                        "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
                        "quotaId": quota_id,
                        "quotaDimensions": {"location": "global"},
                        "quotaValue": "250",
                    }
                ],
            },
            {"@type": RPC + "RetryInfo", "retryDelay": f"{retry}s"},
        ],
    )


# --- scripts ----------------------------------------------------------------------------

SCRIPTS: dict[str, Callable[["Turn"], Reply]] = {}


def script(*names: str):
    def add(fn):
        for name in names:
            SCRIPTS[name] = fn
        return fn

    return add


@dataclass
class Turn:
    """What a script sees: its arguments, the step of the tool loop, the attempt number."""

    name: str
    args: dict[str, str]
    step: int
    attempt: int
    results: list[dict]
    prompt: str

    def num(self, key: str, default: float) -> float:
        return float(self.args.get(key, default))

    def calls(self, *calls: tuple[str, dict]) -> Reply:
        """One call each step, then a closing text that tells what came back."""
        if self.step < len(calls):
            name, args = calls[self.step]
            return Reply(
                parts=[
                    {"text": f"Step {self.step + 1}: calling {name}. "},
                    call_part(name, args, f"call_{self.name}_{self.step}"),
                ]
            )
        return Reply(parts=text_parts(f"Done after {self.step} tool results.", 2))


@script("text", "slow")
def _text(t: Turn) -> Reply:
    n = int(t.num("chunks", 5 if t.name == "slow" else 3))
    return Reply(
        parts=[{"text": f"chunk {i + 1} of {n}. "} for i in range(n)],
        delay=t.num("delay", 1.0 if t.name == "slow" else 0.0),
    )


@script("say")
def _say(t: Turn) -> Reply:
    return Reply(parts=text_parts(t.args.get("text", ""), 2))


@script("think")
def _think(t: Turn) -> Reply:
    return Reply(
        parts=[
            {"text": "**Weighing the options** The plan is short.", "thought": True},
            *text_parts("The answer is 42.", 2),
        ],
        thoughts=33,
    )


@script("cached")
def _cached(t: Turn) -> Reply:
    return Reply(parts=text_parts("Answered mostly from cache.", 2), cached=64)


@script("tooltokens")
def _tooltokens(t: Turn) -> Reply:
    return Reply(parts=text_parts("Answered with a server-side tool.", 2), tooluse=17)


@script("shell")
def _shell(t: Turn) -> Reply:
    return t.calls(
        ("run_shell_command", {"command": t.args.get("cmd", "echo hello"), "description": "scripted command"})
    )


@script("write")
def _write(t: Turn) -> Reply:
    return t.calls(
        (
            "write_file",
            {"file_path": t.args.get("path", "fake.txt"), "content": t.args.get("content", "written by the fake\n")},
        )
    )


@script("read")
def _read(t: Turn) -> Reply:
    return t.calls(("read_file", {"file_path": t.args.get("path", "fake.txt")}))


@script("call")
def _call(t: Turn) -> Reply:
    return t.calls((t.args.get("name", "nope"), json.loads(t.args.get("args", "{}"))))


@script("multi")
def _multi(t: Turn) -> Reply:
    return t.calls(
        (
            "write_file",
            {"file_path": t.args.get("path", "fake.txt"), "content": t.args.get("content", "written by the fake\n")},
        ),
        ("run_shell_command", {"command": t.args.get("cmd", "ls")}),
    )


@script("parallel", "noid")
def _parallel(t: Turn) -> Reply:
    if t.step == 0:
        calls = [
            call_part("run_shell_command", {"command": t.args.get("cmd", "echo a")}, "call_par_0"),
            call_part("run_shell_command", {"command": t.args.get("cmd2", "echo b")}, "call_par_1"),
        ]
        if t.name == "noid":
            for part in calls:
                del part["functionCall"]["id"]
        return Reply(parts=calls)
    return Reply(parts=text_parts(f"Done after {t.step} tool results."))


@script("429", "500", "503")
def _flaky(t: Turn) -> Reply:
    times = int(t.num("times", 2))
    if times < 0 or t.attempt < times:
        if t.name == "429":
            return Reply(error=rate_limit(t.num("retry", 0.2), MINUTE_QUOTA))
        if t.name == "500":
            return Reply(error=api_error(500, "INTERNAL", "An internal error has occurred."))
        return Reply(error=api_error(503, "UNAVAILABLE", "The model is overloaded. Please try again later."))
    return Reply(parts=text_parts(f"Answered at attempt {t.attempt + 1}.", 2))


@script("quota")
def _quota(t: Turn) -> Reply:
    return Reply(error=rate_limit(t.num("retry", 40000), DAY_QUOTA))


@script("400")
def _400(t: Turn) -> Reply:
    return Reply(
        error=api_error(400, "INVALID_ARGUMENT", t.args.get("message", "Request contains an invalid argument."))
    )


@script("badkey")
def _badkey(t: Turn) -> Reply:
    return Reply(error=bad_key())


@script("401", "402")
def _gateway(t: Turn) -> Reply:
    if t.name == "401":
        return Reply(error=api_error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials."))
    return Reply(error=api_error(402, "FAILED_PRECONDITION", "The budget of this sandbox is spent."))


@script("denied")
def _denied(t: Turn) -> Reply:
    return Reply(error=api_error(403, "PERMISSION_DENIED", "The caller does not have permission"))


@script("notfound")
def _notfound(t: Turn) -> Reply:
    return Reply(error=api_error(404, "NOT_FOUND", "models/none is not found for API version v1beta"))


@script("toolong")
def _toolong(t: Turn) -> Reply:
    return Reply(
        error=api_error(
            400,
            "INVALID_ARGUMENT",
            "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        )
    )


@script("malformed", "truncate", "hang")
def _fault(t: Turn) -> Reply:
    return Reply(parts=text_parts("This sentence is cut short by a fault.", 2), fault=t.name)


@script("gated", "gzip", "redirect", "reset", "silent", "leak", "leakerror", "huge", "hugeevent", "midstreamerror")
def _special(t: Turn) -> Reply:
    return Reply(parts=text_parts("One two three four.", 2), special=t.name, args=t.args)


@script("nofinish")
def _nofinish(t: Turn) -> Reply:
    return Reply(parts=text_parts("No finish reason follows."), finish=None)


@script("empty")
def _empty(t: Turn) -> Reply:
    return Reply(parts=[])


@script("safety", "maxtokens", "recitation", "malformedcall")
def _finish(t: Turn) -> Reply:
    finish = {
        "safety": "SAFETY",
        "maxtokens": "MAX_TOKENS",
        "recitation": "RECITATION",
        "malformedcall": "MALFORMED_FUNCTION_CALL",
    }[t.name]
    parts = text_parts("Cut off after this") if t.name == "maxtokens" else []
    return Reply(parts=parts, finish=finish)


@script("blocked")
def _blocked(t: Turn) -> Reply:
    return Reply(blocked="PROHIBITED_CONTENT")


# --- choosing a reply -------------------------------------------------------------------


def last_prompt(contents: list[dict]) -> tuple[str, list[dict]]:
    """The text of the last user message that is a prompt, and the tool results after it."""
    results: list[dict] = []
    for content in reversed(contents):
        if content.get("role") not in (None, "user"):
            continue
        parts = content.get("parts", [])
        answers = [p["functionResponse"] for p in parts if "functionResponse" in p]
        if answers:
            results = answers + results
            continue
        texts = []
        for part in parts:  # a message may carry context, an interrupted prompt, the prompt, file contents
            if part.get("text", "").lstrip().startswith("--- Content from referenced"):
                break
            if part.get("text", "").strip() and not part.get("thought"):
                texts.append(part["text"])
        if texts:
            return texts[-1], results
    return "", results


def parse_args(raw: str | None) -> dict[str, str]:
    args: dict[str, str] = {}
    for item in re.split(r";\s*", raw or ""):
        if "=" in item:
            key, value = item.split("=", 1)
            args[key.strip()] = value.replace("\\n", "\n")
    return args


def smallest(schema: dict | None) -> Any:
    """The smallest value that fits a JSON schema (or the API's own upper-case dialect)."""
    schema = schema or {}
    if schema.get("enum"):
        return schema["enum"][0]
    kind = str(schema.get("type", "object")).lower()
    if kind == "object":
        props = schema.get("properties", {})
        return {k: smallest(v) for k, v in props.items()}
    if kind == "array":
        return []
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    if kind == "boolean":
        return False
    return "fake"


def usage_of(reply: Reply, contents: list[dict], sent: list[dict]) -> dict[str, Any]:
    candidates = sum(5 if "functionCall" in p else len(p.get("text", "").split()) for p in sent if not p.get("thought"))
    prompt = 100 + 10 * len(contents)
    usage: dict[str, Any] = {"promptTokenCount": prompt}
    if candidates:
        usage["candidatesTokenCount"] = candidates
    usage["totalTokenCount"] = prompt + candidates + reply.thoughts + reply.tooluse
    usage["promptTokensDetails"] = [{"modality": "TEXT", "tokenCount": prompt}]
    if reply.cached:
        usage["cachedContentTokenCount"] = reply.cached
        usage["cacheTokensDetails"] = [{"modality": "TEXT", "tokenCount": reply.cached}]
    if reply.thoughts:
        usage["thoughtsTokenCount"] = reply.thoughts
    if reply.tooluse:
        usage["toolUsePromptTokenCount"] = reply.tooluse
        usage["toolUsePromptTokensDetails"] = [{"modality": "TEXT", "tokenCount": reply.tooluse}]
    return usage


class FakeGemini:
    """The server. `requests` holds what it received, oldest first."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, key: str | None = None, log: str | None = None) -> None:
        self.key = key
        self.requests: list[dict] = []
        self._attempts: dict[str, int] = {}
        self._lock = threading.Lock()
        self._log = open(log, "a", buffering=1) if log else None
        self.stopping = threading.Event()
        self.gate = threading.Event()
        fake = self

        class Handler(_Handler):
            server_fake = fake

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request, client_address):  # a client that went away is normal
                pass

        self.server = Server((host, port), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://{host}:{self.port}"

    def start(self) -> "FakeGemini":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()
        if self._log:
            self._log.close()

    __enter__ = start

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def reset(self) -> None:
        with self._lock:
            self.requests.clear()
            self._attempts.clear()

    def record(self, entry: dict) -> None:
        with self._lock:
            self.requests.append(entry)
            if self._log:
                self._log.write(json.dumps(entry) + "\n")

    def reply_to(self, body: dict) -> Reply:
        config = body.get("generationConfig", {})
        if config.get("responseMimeType") == "application/json":
            schema = config.get("responseJsonSchema") or config.get("responseSchema")
            return Reply(parts=[{"text": json.dumps(smallest(schema))}])
        prompt, results = last_prompt(body.get("contents", []))
        found = DIRECTIVE.findall(prompt)
        if not found or found[-1][0] not in SCRIPTS:
            tail = prompt.strip().splitlines()[-1] if prompt.strip() else ""
            return Reply(parts=text_parts(f"You said: {tail}", 3))
        name, raw = found[-1]
        step = len(results)
        with self._lock:
            mark = json.dumps([prompt, step])
            attempt = self._attempts.get(mark, 0)
            self._attempts[mark] = attempt + 1
        return SCRIPTS[name](Turn(name, parse_args(raw), step, attempt, results, prompt))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_fake: FakeGemini

    def log_message(self, *args: object) -> None:
        pass

    # sending
    def _json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(data)))
        for k, v in (headers or {}).items():
            self.send_header(k, v)
        self.end_headers()
        self.wfile.write(data)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _event(self, body: dict) -> None:
        self._chunk(b"data: " + json.dumps(body).encode() + b"\r\n\r\n")

    # requests
    def do_GET(self) -> None:
        fake, path = self.server_fake, urlsplit(self.path).path
        if path == "/__fake/requests":
            return self._json(200, fake.requests)
        if path.endswith("/models"):
            return self._json(200, {"models": [self._model("gemini-2.5-pro"), self._model("gemini-2.5-flash")]})
        name = re.search(r"/models/([^/:]+)$", path)
        if name:
            return self._json(200, self._model(name[1]))
        return self._json(404, api_error(404, "NOT_FOUND", "no such path")[1])

    @staticmethod
    def _model(name: str) -> dict:
        return {
            "name": f"models/{name}",
            "version": "001",
            "displayName": name,
            "inputTokenLimit": 1048576,
            "outputTokenLimit": 65536,
            "supportedGenerationMethods": ["generateContent", "countTokens"],
        }

    def do_POST(self) -> None:
        fake = self.server_fake
        url = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if url.path == "/__fake/reset":
            fake.reset()
            return self._json(200, {})
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            body = {}
        entry: dict[str, Any] = {
            "time": time.time(),
            "method": "POST",
            "path": self.path,
            "headers": dict(self.headers.items()),
            "body": body,
        }
        try:
            self._answer(url, body, entry)
        except (BrokenPipeError, ConnectionResetError):
            entry["client_gone"] = True
            self.close_connection = True
        finally:
            fake.record(entry)

    def _key(self, url) -> str | None:
        bearer = self.headers.get("Authorization", "")
        return (
            self.headers.get("x-goog-api-key")
            or (parse_qs(url.query).get("key") or [None])[0]
            or (bearer[7:] if bearer.startswith("Bearer ") else None)
        )

    def _answer(self, url, body: dict, entry: dict) -> None:
        fake = self.server_fake
        found = re.search(r"/models/([^/:]+):(\w+)$", url.path)

        def fail(status: int, err: dict, headers: dict[str, str] | None = None) -> None:
            entry["status"] = status
            self._json(status, err, headers)

        if fake.key is not None and self._key(url) != fake.key:
            if not self._key(url):
                return fail(
                    *api_error(
                        403,
                        "PERMISSION_DENIED",
                        "Method doesn't allow unregistered callers (callers without established identity).",
                    )
                )
            return fail(*bad_key())
        if not found:
            return fail(*api_error(404, "NOT_FOUND", "no such path"))
        model, verb = found[1], found[2]
        contents = body.get("contents") or []
        if verb == "countTokens":
            entry["status"] = 200
            contents = contents or body.get("generateContentRequest", {}).get("contents", [])
            return self._json(200, {"totalTokens": 100 + 10 * len(contents)})
        if verb == "embedContent":
            entry["status"] = 200
            return self._json(200, {"embedding": {"values": [0.1, 0.2, 0.3]}})
        if verb == "batchEmbedContents":
            entry["status"] = 200
            return self._json(200, {"embeddings": [{"values": [0.1, 0.2, 0.3]} for _ in body.get("requests", [])]})
        if verb not in ("generateContent", "streamGenerateContent"):
            return fail(*api_error(404, "NOT_FOUND", f"no method {verb}"))

        reply = fake.reply_to(body)
        if reply.special in {"redirect", "reset", "silent", "leakerror"}:
            return self._no_stream(reply, entry, fail, self._key(url))
        if reply.error:
            return fail(reply.error[0], reply.error[1], reply.headers)
        entry["status"] = 200

        def chunk(parts: list[dict], sent: list[dict], last: bool) -> dict:
            usage = usage_of(reply, contents, sent)
            entry["usage"] = usage
            out: dict[str, Any] = {"usageMetadata": usage, "modelVersion": model, "responseId": "fake-response"}
            if reply.blocked:
                out["promptFeedback"] = {"blockReason": reply.blocked}
                return out
            candidate: dict[str, Any] = {"index": 0}
            if parts:
                candidate["content"] = {"role": "model", "parts": parts}
            if last and reply.finish:
                candidate["finishReason"] = reply.finish
            out["candidates"] = [candidate]
            return out

        if verb == "generateContent":
            return self._json(200, chunk(reply.parts, reply.parts, True))

        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        if reply.special == "gzip":
            self.send_header("Content-Encoding", "gzip")
        if reply.special == "leak":
            self.send_header("X-Debug-Key", self._key(url))
        self.end_headers()
        if reply.special:
            return self._special_stream(reply, chunk, self._key(url))
        groups = [[p] for p in reply.parts] or [[]]
        for i, parts in enumerate(groups):
            if i and reply.delay:
                time.sleep(reply.delay)
            if i and reply.fault:
                return self._break(reply.fault, entry)
            self._event(chunk(parts, reply.parts[: i + 1], i == len(groups) - 1))
        self._chunk(b"")

    def _no_stream(self, reply: Reply, entry: dict, fail, key: str) -> None:
        match reply.special:
            case "redirect":
                fail(302, {}, {"Location": reply.args["to"]})
            case "leakerror":
                fail(*api_error(400, "INVALID_ARGUMENT", f"API key {key} is not valid for this."))
            case "reset":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            case "silent":
                self._break("hang", entry)

    def _special_stream(self, reply: Reply, chunk, key: str) -> None:
        first, last = [reply.parts[0]], [reply.parts[1]]
        match reply.special:
            case "gated":
                self._event(chunk(first, first, False))
                self.server_fake.gate.wait(20)
                self._event(chunk(last, reply.parts, True))
            case "gzip":
                packed = gzip.compress(b"data: " + json.dumps(chunk(reply.parts, reply.parts, True)).encode() + b"\n\n")
                for at in range(0, len(packed), 7):
                    self._chunk(packed[at : at + 7])
            case "leak":
                event = b"data: " + json.dumps(chunk([{"text": f"it is {key}!"}], reply.parts, True)).encode() + b"\n\n"
                cut = event.index(key.encode()) + len(key) // 2
                self._chunk(event[:cut])
                time.sleep(0.05)
                self._chunk(event[cut:])
            case "huge":
                for _ in range(int(reply.args["mb"])):
                    self._event(chunk([{"text": "x" * (1 << 20)}], first, False))
                self._event(chunk(last, reply.parts, True))
            case "hugeevent":
                self._chunk(b'data: {"x": "')
                for _ in range(int(reply.args["mb"])):
                    self._chunk(b"y" * (1 << 20))
                self._chunk(b'"}\n\n')
                self._event(chunk(last, reply.parts, True))
            case "midstreamerror":
                self._event(chunk(first, first, False))
                self._event(api_error(503, "UNAVAILABLE", "The model is overloaded.")[1])
        self._chunk(b"")

    def _break(self, fault: str, entry: dict) -> None:
        entry["fault"] = fault
        if fault == "malformed":
            self._chunk(b'data: {"candidates": [{"content": {"parts": [{"text": "bro\r\n\r\n')
            self._chunk(b"")
        elif fault == "hang":
            self.connection.settimeout(0.2)
            while not self.server_fake.stopping.is_set():
                try:
                    if self.connection.recv(1, socket.MSG_PEEK) == b"":
                        entry["client_gone"] = True
                        break
                    time.sleep(0.1)
                except TimeoutError:
                    continue
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def main() -> None:
    ap = argparse.ArgumentParser(description="Fake Gemini API server")
    ap.add_argument("--host", default="127.0.0.1")
    ap.add_argument("--port", type=int, default=8089)
    ap.add_argument("--log", help="append every request to this file, a JSON object a line")
    ap.add_argument("--key", help="the only accepted key")
    args = ap.parse_args()
    fake = FakeGemini(args.host, args.port, args.key, args.log).start()
    print(f"fake gemini on {fake.url}", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        fake.stop()


if __name__ == "__main__":
    main()
