"""The JavaScript client against the real service, in Node and in a real Chromium, through a proxy that cuts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.clients.drivers import JavaScript, call
from tests.clients.generated import CLIENT
from tests.clients.pages import cutting, pages
from tests.support.browser import Watched, chromium, watched
from tests.support.cutter import dice
from tests.support.gateway import Gateway, gateway
from tests.support.needs import program
from tests.support.npm import installed
from tests.support.simulator_process import prompt
from tests.support.snippets import snippets
from tests.support.stack import ROOT, Stack, stack

pytestmark = pytest.mark.long

TORN = {"pieces": ["é🌊", "\n", "ab", "—"] * 50, "tokens_per_second": 200}
"""An answer that takes a second, of characters that are cut into pieces."""
TOLERATED = ("Failed to load resource", "has been blocked by CORS policy")
"""What Chromium says of requests that the proxy cuts."""


@dataclass(frozen=True)
class Place:
    stack: Stack
    gateway: Gateway
    origin: str
    folder: Path
    key: str

    def text(self, message: str) -> str:
        """The answer of the simulator."""
        return str(self.stack.simulator.answer(message)["text"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A service that requires a key, and pages of another origin that it lists."""
    folder = tmp_path_factory.mktemp("pages")
    with pages(folder) as origin:
        env = {"CHATJOBS_PORT": "0", "CHATJOBS_CONCURRENCY": "20", "CHATJOBS_CORS_ORIGINS": origin}
        with stack(tmp_path_factory.mktemp("javascript"), env=env) as started:
            command = [sys.executable, "starter.py", "keys", "add", "--json"]
            added = subprocess.run(command, cwd=ROOT, env=started.env, capture_output=True, text=True, check=True)
            yield Place(started, gateway(started), origin, folder, json.loads(added.stdout)["key"])


@pytest.fixture(scope="module")
def node() -> Iterator[JavaScript]:
    driver = JavaScript()
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program("chromium")  # or the test is skipped, before the driver asks for libraries that come with the browser
    with sync_playwright() as playwright, chromium(playwright) as running:
        yield running


@pytest.fixture
def tab(browser: Browser) -> Iterator[Watched]:
    with watched(browser, tolerated=TOLERATED) as found:
        yield found


def ran(script: str, *arguments: str, cwd: Path = CLIENT, **env: str) -> str:
    """What a program for Node prints."""
    command = [program("node"), "--input-type=module", "-e", script, *arguments]
    given = {"PATH": "/usr/bin:/bin", **env}
    done = subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read(events: list[dict[str, Any]]) -> str:
    """The text that a reader has."""
    return "".join(event["content"] for event in events if event["type"] == "chunk")


def kinds(events: list[dict[str, Any]]) -> list[str]:
    found = [str(event["type"]) for event in events if event["type"] != "queued"]
    return [kind for kind, before in zip(found, [None, *found], strict=False) if kind != before]


# --------------------------------------------------------------------------------------------------- Node


async def test_a_job_from_its_start_to_its_answer(place: Place, node: JavaScript) -> None:
    """Streamed, awaited, joined, read: one text."""
    message = prompt("Hello", tokens=30)
    options = {"api_key": place.key}
    (accepted,) = await node.run(place.gateway.url, options, [call("submit", message, metadata={"order": message})])
    job_id = accepted["value"]["jobId"]
    calls = [call(do, job_id) for do in ("stream", "wait", "answer", "get", "request", "stream_token")]
    streamed, job, answer, again, asked, token = await node.run(place.gateway.url, options, calls)
    assert kinds(streamed["values"]) == ["start", "chunk", "complete"]
    texts = [read(streamed["values"]), job["value"]["content"], answer["value"], again["value"]["content"]]
    assert texts == [place.text(message)] * 4
    assert asked["value"]["messages"] == [{"role": "user", "content": message}]
    assert token["value"]["expiresAt"]
    (listed,) = await node.run(place.gateway.url, options, [call("list", metadata={"order": message}, page_size=1)])
    assert [one["jobId"] for one in listed["values"]] == [job_id]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_node_reads_each_character_once_through_a_proxy_that_cuts(
    place: Place, node: JavaScript, seed: int
) -> None:
    message = prompt(**TORN)
    options = {"api_key": place.key}
    (accepted,) = await node.run(place.gateway.url, options, [call("submit", message)])
    job_id = accepted["value"]["jobId"]
    with cutting(place.gateway.url, dice(seed, 1, 1_500)) as proxy:
        (streamed,) = await node.run(proxy.url, options, [call("stream", job_id)])
    assert proxy.cuts >= 2
    assert kinds(streamed["values"]) == ["start", "chunk", "complete"]
    (job,) = await node.run(place.gateway.url, options, [call("get", job_id)])
    assert read(streamed["values"]) == job["value"]["content"] == place.text(message)


async def test_a_job_whose_acceptance_was_lost_is_one_job(place: Place, node: JavaScript) -> None:
    """The answer to the POST is cut twice; the third is about the same job."""
    options, label = {"api_key": place.key}, prompt()
    with cutting(place.gateway.url, iter([0, 100, None])) as proxy:
        (accepted,) = await node.run(proxy.url, options, [call("submit", prompt(), metadata={"lost": label})])
    assert proxy.cuts == 2
    (listed,) = await node.run(place.gateway.url, options, [call("list", metadata={"lost": label})])
    assert [one["jobId"] for one in listed["values"]] == [accepted["value"]["jobId"]]


async def test_many_prompts_and_a_batch(place: Place, node: JavaScript) -> None:
    prompts, options = [prompt(tokens=3) for _ in range(5)], {"api_key": place.key}
    mapped, accepted = await node.run(
        place.gateway.url, options, [call("map", prompts, concurrency=3), call("batches.submit", prompts, name="n")]
    )
    texts = [place.text(message) for message in prompts]
    assert [one["job"]["content"] for one in mapped["values"]] == texts
    batch_id = accepted["value"]["batchId"]
    calls = [call(f"batches.{do}", batch_id) for do in ("watch", "wait", "output", "errors")]
    states, batch, output, errors = await node.run(place.gateway.url, options, calls)
    assert states["values"][-1]["status"] == batch["value"]["status"] == "completed"
    answers = [line["response"]["body"]["choices"][0]["message"]["content"] for line in output["values"]]
    assert (answers, errors["values"]) == (texts, [])


HANDLERS = """
import { ChatJobs } from "./src/index.js";
const [url, apiKey, message] = process.argv.slice(1);
const jobs = new ChatJobs(url, { apiKey });
const seen = [];
let once = 0;
const gone = () => seen.push("gone");
const run = jobs.chat(message).on("chat:chunk", gone).off("chat:chunk", gone).once("chat:chunk", () => once++);
for (const name of ["start", "chunk", "complete", "error", "cancelled"]) {
  run.on(`chat:${name}`, ({ type, content }) => seen.push([type, content]));
}
const end = await run.finished;
const again = jobs.watch(run.jobId).on("chat:start", () => { throw new RangeError("a mistake of the handler"); });
const error = await again.finished.catch((found) => found);
const closed = jobs.watch(run.jobId);
closed.close();
const stopped = new AbortController();
const aborted = jobs.watch(run.jobId, { signal: stopped.signal });
stopped.abort(new Error("stop"));
const reason = await aborted.finished.catch((found) => found.message);
const missing = await jobs.watch("job_missing").finished.catch((found) => found.name);
const late = jobs.watch(run.jobId);
let lateEvents = 0;
late.on("chat:start", () => late.close());
for (const name of ["chunk", "complete"]) late.on(`chat:${name}`, () => lateEvents++);
const none = [await late.finished, lateEvents, await jobs.watch("a/b").finished.catch((found) => found.name)];
const facts = [once, end.type, error.message, await closed.finished, reason, missing, ...none];
console.log(JSON.stringify({ seen, facts, once }));
"""


def test_handlers_get_the_events(place: Place) -> None:
    """An error of a handler is not swallowed; a closed watch is no error."""
    message = prompt(tokens=20, tokens_per_second=100)
    found = json.loads(ran(HANDLERS, place.gateway.url, place.key, message))
    assert [one[0] for one in found["seen"]][:: len(found["seen"]) - 1] == ["start", "complete"]
    assert "".join(content or "" for _, content in found["seen"]) == place.text(message)
    assert found["facts"] == [
        1,
        "complete",
        "a mistake of the handler",
        None,
        "stop",
        "JobNotFound",
        None,
        0,
        "JobNotFound",
    ]


UNHANDLED = """
import { ChatJobs } from "./src/index.js";
const [url, apiKey] = process.argv.slice(1);
process.on("unhandledRejection", (error) => (console.log(error.message), process.exit(0)));
new ChatJobs(url, { apiKey }).chat("Hi").on("chat:chunk", () => { throw new Error("nobody catches this"); });
"""


def test_an_error_of_a_handler_is_reported_if_nobody_asks(place: Place) -> None:
    assert ran(UNHANDLED, place.gateway.url, place.key) == "nobody catches this\n"


STREAMED = """
import { createReadStream, createWriteStream, readFileSync } from "node:fs";
import { Readable, Writable } from "node:stream";
import { ChatJobs, InvalidRequest } from "./src/index.js";
const [url, apiKey, path, out] = process.argv.slice(1);
const jobs = new ChatJobs(url, { apiKey });
const fromFile = await jobs.batches.submit(Readable.toWeb(createReadStream(path)));
await jobs.batches.wait(fromFile.batchId);
const lines = await jobs.batches.download(fromFile.batchId, Writable.toWeb(createWriteStream(out)));
async function* broken() { yield "a"; throw new RangeError("no more"); }
const error = await jobs.batches.submit(broken()).catch((found) => found.message);
const signal = AbortSignal.timeout(50);
async function* slow() { yield "a"; await new Promise((resolve) => setTimeout(resolve, 9_000)); }
const aborted = await jobs.batches.submit(slow(), { signal }).catch((found) => found.name);
const blob = await jobs.batches.submit(new Blob([readFileSync(path)]), { name: "b" });
const written = readFileSync(out, "utf8").trim().split("\\n").length;
console.log(JSON.stringify([lines, written, error, aborted, Boolean(blob.batchId)]));
process.exit(0);
"""


def test_files_are_streamed_up_and_down(place: Place, tmp_path: Path) -> None:
    """What reading the items throws is thrown, and nothing is started."""
    items = tmp_path / "items.jsonl"
    bodies = [{"body": {"messages": [{"role": "user", "content": prompt(tokens=1)}]}} for _ in range(30)]
    items.write_text("".join(f"{json.dumps(body)}\n" for body in bodies))
    found = json.loads(ran(STREAMED, place.gateway.url, place.key, str(items), str(tmp_path / "out.jsonl")))
    assert found == [30, 30, "no more", "TimeoutError", True]


SLOW = """
import { ChatJobs } from "./src/index.js";
const [url, apiKey] = process.argv.slice(1);
const jobs = new ChatJobs(url, { apiKey, silence: 400 });
async function* slowly() {
  for (let n = 0; n < 6; n++) {
    yield `item ${n} of ${"x".repeat(70_000)}`;
    await new Promise((resolve) => setTimeout(resolve, 150));
  }
}
const { batchId } = await jobs.batches.submit(slowly());
console.log((await jobs.batches.wait(batchId)).counts.total);
"""


def test_an_upload_may_take_longer_than_a_silence(place: Place) -> None:
    """While items are sent, the connection is not dead."""
    assert ran(SLOW, place.gateway.url, place.key) == "6\n"


PAGES = """
import { ChatJobs } from "./src/index.js";
const [url, apiKey, label] = process.argv.slice(1);
const jobs = new ChatJobs(url, { apiKey });
const made = [];
for (let n = 0; n < 3; n++) made.unshift((await jobs.submit("Hi", { metadata: { label } })).jobId);
const first = await jobs.page({ metadata: { label }, limit: 2 });
const second = await jobs.page({ metadata: { label }, limit: 2, cursor: first.nextCursor });
const found = [...first.jobs, ...second.jobs].map((job) => job.jobId);
console.log(JSON.stringify([found.join() === made.join(), first.jobs.length, second.nextCursor]));
"""


def test_pages_of_a_list(place: Place) -> None:
    assert json.loads(ran(PAGES, place.gateway.url, place.key, prompt())) == [True, 2, None]


CONNECTIONS = """
import { ChatJobs } from "./src/index.js";
const [url, apiKey, jobId] = process.argv.slice(1);
const jobs = new ChatJobs(url, { apiKey, backoff: () => 1 });
const told = [];
for await (const _ of jobs.stream(jobId, { onConnection: (connected) => told.push(connected) }));
console.log(JSON.stringify(told));
"""


def test_a_stream_tells_of_its_connections(place: Place) -> None:
    job_id, _ = accepted(place, prompt(tokens=20))
    with cutting(place.gateway.url, iter([0, 400, None])) as proxy:
        told = json.loads(ran(CONNECTIONS, proxy.url, place.key, job_id))
    assert proxy.cuts == 2
    assert told in ([False, True, False, True], [False, False, True])


LIMITS = """
import { ChatJobs } from "./src/index.js";
const [url, apiKey, jobId] = process.argv.slice(1);
const jobs = new ChatJobs(url, { apiKey, patience: 300 });
const read = async (options) => { for await (const _ of jobs.stream(jobId, options)); };
const never = () => new Promise(() => {});
const failed = async () => { throw new TypeError("fetch failed"); };
const stop = new AbortController();
setTimeout(() => stop.abort(new RangeError("stopped")), 50);
const ends = [{ token: never }, { token: never, timeout: 50 }, { token: never, signal: stop.signal }];
ends.push({ token: failed });
const names = [];
for (const options of ends) names.push(await read(options).catch((error) => error.name));
const during = new AbortController();
let events = 0;
const aborted = async () => {
  for await (const _ of jobs.stream(jobId, { signal: during.signal })) {
    events++;
    during.abort(new RangeError("enough"));
  }
};
console.log(JSON.stringify([names, await aborted().catch((error) => error.message), events]));
process.exit(0);
"""


def test_a_token_that_never_comes_and_a_signal_end_a_stream(place: Place) -> None:
    """Nothing comes after an abort, although one piece of the stream had all events."""
    job_id, _ = accepted(place, prompt(tokens=20))
    names, reason, events = json.loads(ran(LIMITS, place.gateway.url, place.key, job_id))
    assert names == ["ServiceUnavailable", "TimeoutError", "RangeError", "ServiceUnavailable"]
    assert (reason, events) == ("enough", 1)


LISTENING = """
import { ChatJobs } from "./src/index.js";
const [url, apiKey, message, direct] = process.argv.slice(1);
const jobs = new ChatJobs(url, { apiKey, backoff: () => 1 });
const { jobId } = await new ChatJobs(direct, { apiKey }).submit(message);
const seen = [];
for await (const { event, jobId: of } of jobs.listen({ after: 0 })) {
  if (of === jobId) seen.push(event);
  if (event === "chat.completed" && of === jobId) break;
}
let refused = null;
try { jobs.listen({ types: ["chat.unheard"] }); } catch (error) { refused = error.name; }
console.log(JSON.stringify([seen, refused]));
"""


def test_the_feed_of_all_jobs_through_a_proxy_that_cuts(place: Place) -> None:
    with cutting(place.gateway.url, dice(1, 300, 2_500)) as proxy:
        seen, refused = json.loads(ran(LISTENING, proxy.url, place.key, prompt(), place.gateway.url))
    assert proxy.cuts >= 1
    assert seen == ["chat.created", "chat.started", "chat.completed"]
    assert refused == "RangeError"


@pytest.mark.parametrize("number", range(len(snippets("client.md", "js"))))
def test_the_examples_of_the_guide_run(place: Place, number: int, tmp_path: Path) -> None:
    code = snippets("client.md", "js")[number]
    home = tmp_path / "node_modules"
    home.mkdir()
    (home / "chatjobs").symlink_to(CLIENT)
    assert ran(code, cwd=tmp_path, CHATJOBS_URL=place.gateway.url, CHATJOBS_API_KEY=place.key) != ""


# ----------------------------------------------------------------------------------------------- browsers

READ = """
async ([url, jobId, token]) => {
  const { ChatJobs } = await import("/client/src/index.js");
  const jobs = new ChatJobs(url, { backoff: (failures) => 10 * failures });
  const events = [];
  for await (const event of jobs.stream(jobId, { token: () => token })) events.push(event);
  const answer = await jobs.answer(jobId, { token });
  return { events, answer };
}
"""


def accepted(place: Place, message: str) -> tuple[str, str]:
    """The id of a new job, and a token of its stream."""
    script = """
      import { ChatJobs } from "./src/index.js";
      const [url, apiKey, message] = process.argv.slice(1);
      const jobs = new ChatJobs(url, { apiKey });
      const { jobId } = await jobs.submit(message);
      console.log(JSON.stringify([jobId, (await jobs.streamToken(jobId)).token]));
    """
    job_id, token = json.loads(ran(script, place.gateway.url, place.key, message))
    return job_id, token


@pytest.mark.parametrize("seed", [1, 2])
def test_chromium_reads_each_character_once_through_a_proxy_that_cuts(place: Place, tab: Watched, seed: int) -> None:
    """On a page of another origin, with a stream token and no key."""
    message = prompt(**TORN)
    job_id, token = accepted(place, message)
    page = tab.open(place.origin)
    with cutting(place.gateway.url, dice(seed, 300, 2_500)) as proxy:
        found = page.evaluate(READ, [proxy.url, job_id, token])
    assert proxy.cuts >= 2
    assert kinds(found["events"]) == ["start", "chunk", "complete"]
    assert read(found["events"]) == found["answer"] == place.text(message)


CALLS = """
async ([url, apiKey, message]) => {
  const { ChatJobs, verifyWebhook } = await import("/client/src/index.js");
  const jobs = new ChatJobs(url, { apiKey });
  const job = await jobs.ask(message);
  const run = jobs.chat(message);
  let text = "";
  run.on("chat:chunk", ({ content }) => (text += content));
  await run.finished;
  const wrong = await new ChatJobs(url, { apiKey: "x" }).get(job.jobId).catch((error) => error.name);
  const missing = await jobs.get("job_missing").catch((error) => [error.name, error.code]);
  const batch = await jobs.batches.submit([message], { name: "from a page" });
  const ended = await jobs.batches.wait(batch.batchId);
  const forged = await verifyWebhook("{}", {}, "secret").catch((error) => error.name);
  return [job.content, text, wrong, missing, ended.counts.completed, forged];
}
"""


def test_chromium_calls_the_api(place: Place, tab: Watched) -> None:
    """Also errors can be read, and a batch can be uploaded, which a browser cannot stream."""
    message = prompt(tokens=5)
    page = tab.open(place.origin)
    text = place.text(message)
    found = page.evaluate(CALLS, [place.gateway.url, place.key, message])
    assert found == [text, text, "Unauthorized", ["JobNotFound", "job_not_found"], 1, "InvalidSignature"]


def test_a_token_is_for_its_job_only(place: Place, tab: Watched) -> None:
    job_id, _ = accepted(place, prompt())
    _, other = accepted(place, prompt())
    script = """async ([url, jobId, token]) => {
      const { ChatJobs } = await import("/client/src/index.js");
      return new ChatJobs(url).answer(jobId, { token }).catch((error) => error.name);
    }"""
    assert tab.open(place.origin).evaluate(script, [place.gateway.url, job_id, other]) == "Unauthorized"


# ------------------------------------------------------------------------------------------- a React hook

LOAD = """
// React is published as CommonJS, and a page has no bundler.
const loaded = new Map();
async function load(path) {
  const source = await (await fetch(path)).text();
  for (const [, name] of source.matchAll(/require\\("([^"]+)"\\)/g)) if (!loaded.has(name)) await load(FILES[name]);
  const module = { exports: {} };
  new Function("module", "exports", "require", source)(module, module.exports, (name) => loaded.get(name));
  for (const [name, file] of Object.entries(FILES)) if (file === path) loaded.set(name, module.exports);
}
const FILES = {
  react: "/modules/react/cjs/react.development.js",
  scheduler: "/modules/scheduler/cjs/scheduler.development.js",
  "react-dom": "/modules/react-dom/cjs/react-dom.development.js",
  "react-dom/client": "/modules/react-dom/cjs/react-dom-client.development.js",
};
globalThis.process = { env: { NODE_ENV: "development" } };
for (const file of Object.values(FILES)) await load(file);
delete globalThis.process;
export const React = loaded.get("react");
export const { createRoot } = loaded.get("react-dom/client");
export const { useEffect, useState } = React;
"""
SHOW = """
async ([url, jobId, token, missing]) => {
  const { React, createRoot } = await import("/react.js");
  const { useChatJob } = await import("/hook.js");
  const { ChatJobs } = await import("/client/src/index.js");
  const jobs = new ChatJobs(url, { backoff: (failures) => 10 * failures });
  const texts = [];
  function Answer({ jobId }) {
    const { text, status, error } = useChatJob(jobs, jobId, { token });
    texts.push(text);
    return React.createElement("p", { id: "answer", "data-status": status, "data-error": error?.name }, text);
  }
  const root = createRoot(document.querySelector("main"));
  const strictly = (inner) => React.createElement(React.StrictMode, null, inner);
  const show = (id) => root.render(strictly(React.createElement(Answer, { jobId: id })));
  const settled = async (word) => {
    const shown = () => document.querySelector(`#answer[data-status=${word}]`);
    while (!shown()) await new Promise((resolve) => requestAnimationFrame(resolve));
    return [shown().textContent, shown().dataset.error];
  };
  show(jobId);
  const [text] = await settled("completed");
  show(missing);
  const [, error] = await settled("failed");
  return { text, error, steps: new Set(texts).size };
}
"""


def test_the_react_hook_shows_the_answer(place: Place, tab: Watched, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The hook of docs/react.md, in React's strict mode (which mounts everything twice), through a proxy that cuts."""
    home = installed(
        tmp_path_factory.mktemp("npm"), "the React hook is not run", source=ROOT / "tests" / "clients" / "node"
    )
    hook = snippets("react.md", "jsx")[0]
    body = hook[hook.index("export function") :].splitlines()
    assert len(body) <= 16
    (place.folder / "modules").symlink_to(home / "node_modules")
    (place.folder / "react.js").write_text(LOAD)
    (place.folder / "hook.js").write_text(re.sub(r'from "react"', 'from "/react.js"', hook))
    page = tab.open(place.origin)
    page.evaluate("import('/hook.js').then(() => true)")  # it takes a moment, in which the answer would come
    message = prompt(**TORN | {"tokens_per_second": 40})
    job_id, token = accepted(place, message)
    with cutting(place.gateway.url, dice(3, 300, 2_500)) as proxy:
        found = page.evaluate(SHOW, [proxy.url, job_id, token, "job_missing"])
    assert (found["text"], found["error"]) == (place.text(message), "Unauthorized")
    assert found["steps"] > 5
