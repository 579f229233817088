"""Answers on the page: rendered as Markdown and never as markup, while they are written and after; and copied."""

from __future__ import annotations

import json
import random
import statistics
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import test_page, test_page_use
from tests.browser.test_page import answer_of, ended, head, job_url, post
from tests.support.browser import Watched, watched
from tests.support.gateway import Gateway, gateway
from tests.support.stack import Stack, free_port, stack

pytestmark = pytest.mark.long

axe = test_page_use.axe
logs = test_page.logs

SAMPLE = """# The tide

The *moon* and the **sun** pull at the ~~land~~ sea; see [NOAA](https://tides.example/how "How it works").

| place | range |
|:------|------:|
| Fundy | 16 m |
| Venice | 1 m |

1. First
   - nested `code`
   - [x] done
   - [ ] to do
2. Second

> Time and tide
> wait for nobody.

```python
def range_of(high, low):
    return high - low  # <b>not bold</b>
```

![a chart](https://charts.example/tide.png)

The sum is $\\sum_i x_i$ and $$a_b * c_d$$, as it was written.
"""

RENDER = """async ([pieces, whole]) => {
  const { Rendering } = await import("/assets/markdown.js");
  const made = () => document.body.appendChild(document.createElement("div"));
  const [slow, once] = [new Rendering(made()), new Rendering(made())];
  let text = "";
  for (const piece of pieces) slow.show((text += piece));
  once.show(whole);
  const before = slow.root.isEqualNode(once.root);
  slow.finish();
  once.finish();
  const bad = "script,style,img,svg,math,iframe,form,object,embed,link,meta,base,template,picture,video,audio," +
    "[id],[name],[style],[src],[srcset],[background],[formaction],[action]";
  const all = [...slow.root.querySelectorAll("*")];
  const found = {
    before,
    same: slow.root.isEqualNode(once.root),
    bad: [...slow.root.querySelectorAll(bad)].map((one) => one.outerHTML),
    handlers: all.flatMap((one) => one.getAttributeNames()).filter((name) => name.startsWith("on")),
    links: [...slow.root.querySelectorAll("a")].map((one) => one.getAttribute("href")),
    unsafe: [...slow.root.querySelectorAll("a")].filter(
      (one) => one.rel !== "noopener noreferrer nofollow" || one.target !== "_blank").length,
    nested: slow.root.querySelectorAll("a a").length,
    text: slow.root.textContent,
    html: slow.root.outerHTML,
    hacked: window.hacked ?? null,
  };
  slow.root.remove();
  once.root.remove();
  return found;
}"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"CHATJOBS_PORT": str(free_port()), "MISTRAL_REQUESTS_PER_SECOND": "1000"}
    with stack(tmp_path_factory.mktemp("answers-page"), env=env) as running:
        yield running


@pytest.fixture(scope="module")
def door(place: Stack) -> Gateway:
    return gateway(place)


def rendered(page: Page, text: str, step: int = 1) -> Any:
    """What the page makes of a text that arrives in pieces."""
    pieces = [text[start : start + step] for start in range(0, len(text), step)]
    found = page.evaluate(RENDER, [pieces, text])
    assert found["same"], f"in pieces it is {found['html']}"
    assert found["before"] or "]:" in text, f"before its end it is {found['html']}"
    return found


# ---------------------------------------------------------------------------------------------------- strangers

HOSTILE: list[tuple[str, list[str]]] = [
    # addresses that run something, and what hides them
    ("[a](javascript:window.hacked=1)", []),
    ("[a](JaVaScRiPt:window.hacked=1)", []),
    ("[a]( javascript:window.hacked=1)", []),
    ("[a](&#106;avascript:window.hacked=1)", []),
    ("[a](&#x6A&#x61&#x76&#x61&#x73&#x63&#x72&#x69&#x70&#x74&#x3A&#x61)", []),
    ("[a](java&Tab;script:window.hacked=1)", []),
    ("[a](java&NewLine;script:window.hacked=1)", []),
    ("[a](\x01javascript:window.hacked=1)", []),
    ("[a](javascript&colon;window.hacked=1)", []),
    ("[a](vbscript:x)", []),
    ("[a](data:text/html;base64,PHNjcmlwdD53aW5kb3cuaGFja2VkPTE8L3NjcmlwdD4=)", []),
    ("[a](data:image/svg+xml,<svg onload=window.hacked=1>)", []),
    ("[a](file:///etc/passwd)", []),
    ("[a](blob:https://x.example/1)", ["https://x.example/1"]),
    ("[a](/api/jobs) [b](//evil.example) [c](#id) [d](?q=1)", []),
    ("<javascript:window.hacked=1>", []),
    ("<data:text/html,x>", []),
    ("[a]: javascript:window.hacked=1\n\n[a]", []),
    ("[a](<javascript:window.hacked=1>)", []),
    ("![a](javascript:window.hacked=1)", []),
    ("![a](data:image/svg+xml;base64,PHN2Zy8+)", []),
    # titles and texts that would break out of an attribute
    ('[a](https://x.example "\\" onmouseover=window.hacked=1 x=\\"")', ["https://x.example"]),
    ('[a](https://x.example/"onmouseover="window.hacked=1)', ["https://x.example/%22onmouseover=%22window.hacked=1"]),
    ('![" onerror=window.hacked=1 x="](https://x.example/i.png)', ["https://x.example/i.png"]),
    ("[<img src=x onerror=window.hacked=1>](https://x.example)", ["https://x.example"]),
    ('```"><img src=x onerror=window.hacked=1>\nx\n```', []),
    ("``` <script>window.hacked=1</script>\nx\n```", []),
    # links in links, images in links
    ("[a [b](https://b.example) c](https://a.example)", ["https://b.example", "https://a.example"]),
    ("[![i](https://i.example/i.png)](https://a.example)", ["https://a.example"]),
    ("[https://b.example](https://a.example)", ["https://a.example"]),
    # found addresses, also those of other letters
    ("https://a.example/<script>window.hacked=1</script>", ["https://a.example/"]),
    ("https://аррӏе.example/x", ["https://xn--80ak6aa92e.example/x"]),
    ('<https://a.example/?q="><img>', ["https://a.example/?q=%22"]),
    ("mailto:a@b.example a@b.example", ["mailto:a@b.example", "mailto:a@b.example"]),
    ("https://user:pass@evil.example/‮gpj.exe", ["https://user"]),
    # HTML
    ("<script>window.hacked=1</script>", []),
    ("<img src=x onerror=window.hacked=1>", []),
    ("<svg onload=window.hacked=1><animate onbegin=window.hacked=1 attributeName=x>", []),
    ("<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>", []),
    ("<style>*{background:url(https://evil.example)}</style>", ["https://evil.example"]),
    ("<a id=location name=cookie href=x>x</a><form id=document><input name=body>", []),
    ("<div\n\nonclick=window.hacked=1>x</div>", []),
    ("<details open ontoggle=window.hacked=1>", []),
    ("<!--><img src=x onerror=window.hacked=1>-->", []),
    ("<base href=//evil.example><meta http-equiv=refresh content=0;url=//evil.example>", []),
    # mutations, from DOMPurify's tests and advisories
    (
        '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=window.hacked=1&gt;">',
        [],
    ),
    ("<form><math><mtext></form><form><mglyph><style></math><img src onerror=window.hacked=1>", []),
    ('<svg></p><style><a id="</style><img src=1 onerror=window.hacked=1>">', []),
    ('<noscript><p title="</noscript><img src=x onerror=window.hacked=1>">', []),
    ('<xmp><p title="</xmp><img src=x onerror=window.hacked=1>">', []),
    ("<template><s><template><s><img src=x onerror=window.hacked=1>@shaf</s></template>", []),
    ("<svg><![CDATA[><img src=x onerror=window.hacked=1>]]></svg>", []),
    ('<a href="\x0bjavascript:window.hacked=1">x</a>', []),
    # markup that a table, a list or a task could carry
    ("| <b onclick=x> | [a](javascript:1) |\n|--|--|\n| <img src=x onerror=window.hacked=1> | ![](data:,x) |", []),
    ("- [x] <input onfocus=window.hacked=1 autofocus>", []),
    ("- [ ] [x](javascript:window.hacked=1)", []),
    ("[^1]: <script>window.hacked=1</script>\n\nx[^1]", []),
]


def test_hostile_markdown_is_text(door: Gateway, tab: Watched) -> None:
    """Under the page's own policy, in pieces as it streams: no element, attribute or address but those of Markdown."""
    asked: list[str] = []
    tab.context.on("request", lambda request: asked.append(request.url))
    page = tab.open(f"{door.url}/")
    for text, links in HOSTILE:
        found = rendered(page, text)
        seen = {name: found[name] for name in ("bad", "handlers", "unsafe", "nested", "hacked")}
        assert seen == {"bad": [], "handlers": [], "unsafe": 0, "nested": 0, "hacked": None}, text
        assert found["links"] == links, text
    assert [url for url in asked if not url.startswith(door.url)] == []


def test_what_was_made_is_sanitised_too(door: Gateway, tab: Watched) -> None:
    """A parser that went mad makes no harm: what it makes passes the sanitiser, which has the last word."""
    page = tab.open(f"{door.url}/")
    left = page.evaluate(
        """async () => {
          const purifier = (await import("/assets/vendor/purify.js")).default;
          await import("/assets/markdown.js"); // sets what is allowed
          const root = document.createElement("div");
          const add = (name, attributes) => {
            const made = document.createElement(name);
            for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
            root.append(made);
          };
          add("img", { src: "x" });
          add("iframe", {});
          add("a", { href: "javascript:window.hacked=1", id: "location" });
          add("a", { href: "//evil.example" });
          add("p", { name: "body", background: "https://evil.example" });
          add("form", {});
          add("p", { "data-x": "1", class: "x" });
          purifier.sanitize(root);
          return root.innerHTML;
        }"""
    )
    assert left == '<a></a><a></a><p></p><p data-x="1" class="x"></p>'


def test_a_hostile_answer_is_text(door: Gateway, tab: Watched) -> None:
    """Through the whole service, reasoning too."""
    asked: list[str] = []
    tab.context.on("request", lambda request: asked.append(request.url))
    everything = "\n\n".join(text for text, _ in HOSTILE if "\x01" not in text and "\x0b" not in text)
    job_id = ended(door, text=everything, reasoning=everything)
    page = tab.open(job_url(door, job_id))
    expect(head(page)).to_have_text("Completed")
    expect(page.get_by_test_id("answer")).to_contain_text("<script>window.hacked=1</script>")
    assert page.evaluate("window.hacked") is None
    assert (
        page.locator('main :is(img, svg, script, style, iframe), main [onerror], [href^="javascript" i]').count() == 0
    )
    page.get_by_role("button", name="Raw").click()
    assert answer_of(page) == everything
    assert [url for url in asked if not url.startswith(door.url)] == []


# ---------------------------------------------------------------------------------------------------- rendering


def test_markdown_is_rendered(door: Gateway, tab: Watched, axe: str) -> None:
    page = tab.open(job_url(door, ended(door, text=SAMPLE)))
    answer = page.get_by_test_id("answer")
    expect(answer.get_by_role("heading", name="The tide", level=4)).to_be_visible()
    assert [answer.locator(name).inner_text() for name in ("em", "strong", "del")] == ["moon", "sun", "land"]
    expect(answer.get_by_role("columnheader", name="range")).to_have_css("text-align", "right")
    expect(answer.get_by_role("cell", name="16 m")).to_be_visible()
    expect(answer.locator("ol > li > ul > li")).to_have_count(3)
    expect(answer.get_by_role("checkbox", name="Done")).to_be_checked()
    expect(answer.get_by_role("checkbox", name="To do")).not_to_be_checked()
    expect(answer.locator("blockquote")).to_contain_text("wait for nobody.")
    expect(answer.locator("figure span")).to_have_text("python")
    expect(answer.locator("pre")).to_contain_text("# <b>not bold</b>")
    expect(answer.get_by_role("link", name="Image: a chart")).to_have_attribute(
        "href", "https://charts.example/tide.png"
    )
    expect(answer).to_contain_text("The sum is $\\sum_i x_i$ and $$a_b * c_d$$")
    sizes = page.evaluate(
        """[...document.querySelectorAll('h1, h4, h5, h6')].map(
          (one) => [one.tagName, parseFloat(getComputedStyle(one).fontSize)])"""
    )
    assert max(size for name, size in sizes if name != "H1") < dict(map(tuple, sizes))["H1"]
    test_page_use.fine(page, axe)


PIECES = [
    *("para", " ", "\n", "\n\n", "# h", "- a", "  - b", "1. x", "> q", "```", "~~~", "    code", "***", "---", "|a|b|"),
    *(
        "|--|--|",
        "*em*",
        "**",
        "`",
        "[a](https://x.example)",
        "[r]",
        "[r]: https://r.example",
        "![i](https://i.example)",
    ),
    *("https://l.example", "\\*", "&amp;", "<b>", "===", "- [x] t", "\r\n", "🌊", "\t", "2) y", "+ z", "_u_", "~~s~~"),
]


def test_in_pieces_or_at_once_it_is_the_same(door: Gateway, tab: Watched) -> None:
    """Whatever is written: only the last block is read again, and the end is what the whole text gives."""
    dice = random.Random(11)  # noqa: S311 - the same texts each time
    page = tab.open(f"{door.url}/")
    rendered(page, SAMPLE)
    for _ in range(150):
        rendered(page, "".join(dice.choice(PIECES) for _ in range(dice.randint(2, 40))), step=dice.choice((1, 2, 5)))


def test_an_open_fence_is_code(door: Gateway, tab: Watched) -> None:
    """Before its end is there, and nothing that is shown goes away again."""
    page = tab.open(f"{door.url}/")
    states = page.evaluate(
        """async (text) => {
          const { Rendering } = await import("/assets/markdown.js");
          const shown = new Rendering(document.body.appendChild(document.createElement("div")));
          const states = [];
          for (let end = 1; end <= text.length; end++) {
            shown.show(text.slice(0, end));
            states.push([...shown.root.children].map((one) => one.nodeName).join());
          }
          return [...new Set(states)];
        }""",
        "Before\n\n```python\nx = 1\n\ny = 2\n```\n\nAfter",
    )
    assert states == ["P", "P,FIGURE", "P,FIGURE,P"] or states == ["P", "P,P", "P,FIGURE", "P,FIGURE,P"]


def test_a_selection_and_the_place_stay_while_text_arrives(place: Stack, door: Gateway, tab: Watched) -> None:
    words = uuid.uuid4().hex
    text = "First paragraph with some words.\n\n" + "- item of a list that grows\n" * 200
    page = tab.open(job_url(door, post(door, words, text=text, tokens_per_second=400, hold=40)))
    page.wait_for_function("() => document.querySelector('[data-testid=answer] li')")
    page.evaluate(
        """() => {
          const answer = document.querySelector("[data-testid=answer]");
          const [first, item] = ["p", "li"].map((name) => answer.querySelector(name).firstChild);
          getSelection().setBaseAndExtent(first, 6, item, 4);
        }"""
    )
    selected = page.evaluate("String(getSelection())")
    assert selected.startswith("paragraph with some words.")
    place.simulator.release(words)
    expect(head(page)).to_have_text("Completed")
    expect(page.locator("[data-testid=answer] li")).to_have_count(200)
    assert page.evaluate("String(getSelection())") == selected


@pytest.mark.parametrize("view", ["rendered", "text"])
def test_brackets_in_a_row_are_laid_out_at_once(door: Gateway, tab: Watched, view: str) -> None:
    """A model in a loop writes such things; contextual forms of the page's font would take half a minute for these."""
    page = tab.open(f"{door.url}/")
    took = page.evaluate(
        """([view, text]) => {
          const root = document.createElement("div");
          root.className = view;
          root.append(Object.assign(document.createElement("p"), { textContent: text }));
          document.body.append(root);
          const began = performance.now();
          root.getBoundingClientRect();
          return performance.now() - began;
        }""",
        [view, "[a](" * 15_000],
    )
    assert took < 1_500


def test_a_long_conversation_is_rendered_at_its_end(door: Gateway, tab: Watched) -> None:
    """The rest is folded, and rendered once it is opened."""
    said = "Some *text*, and a [link](https://x.example).\n\n" * 400
    messages = [{"role": role, "content": said} for _ in range(20) for role in ("user", "assistant")]
    job_id = ended(door, fields={"messages": [*messages, {"role": "user", "content": "And?"}]})
    page = tab.open(job_url(door, job_id))
    answers = page.locator("article.message.assistant[aria-label=assistant]")
    expect(answers).to_have_count(20)
    expect(answers.last.locator("em").first).to_be_visible()
    assert answers.locator(".rendered").count() < 6
    answers.first.locator("summary").click()
    expect(answers.first.locator("em").first).to_be_visible()


# -------------------------------------------------------------------------------------------------------- views


def test_the_raw_text_is_exact_and_the_choice_is_kept(door: Gateway, tab: Watched) -> None:
    text = "  two blanks\t\tand tabs\n\n\n# *not* a heading\r\n| a |\n\n🌊 end  \n"
    first, second = ended(door, text=text), ended(door, text="**bold**")
    page = tab.open(job_url(door, first))
    page.get_by_role("button", name="Raw").click()
    assert answer_of(page) == test_page.get(door, f"/api/jobs/{first}")["content"]
    expect(page.get_by_test_id("answer")).to_have_css("white-space", "pre-wrap")
    page.goto(job_url(door, second))
    expect(page.get_by_role("button", name="Raw")).to_have_attribute("aria-pressed", "true")
    assert answer_of(page) == "**bold**"
    page.get_by_role("button", name="Rendered").click()
    expect(page.get_by_test_id("answer").locator("strong")).to_have_text("bold")


def test_copied_are_the_exact_text_the_id_and_the_code(door: Gateway, browser: Browser) -> None:
    """With the keyboard, and it is announced."""
    job_id = ended(door, text=SAMPLE)
    with watched(browser, permissions=["clipboard-read", "clipboard-write"]) as tab:
        page = tab.open(job_url(door, job_id))
        for name, said, text in (
            ("Copy answer", "Answer copied", SAMPLE),
            ("Copy id", "Id copied", job_id),
            ("Copy code", "Code copied", "def range_of(high, low):\n    return high - low  # <b>not bold</b>"),
        ):
            page.get_by_role("button", name=name).focus()
            page.keyboard.press("Enter")
            expect(page.get_by_role("status").get_by_text(said)).to_be_visible()
            assert page.evaluate("navigator.clipboard.readText()") == text


def test_json_is_code(door: Gateway, tab: Watched) -> None:
    """Indented where it is valid; the raw text is what the model wrote."""
    text = '{"harbour":{"depth":12,"lights":["red","green"]}}'
    page = tab.open(job_url(door, ended(door, text=text, fields={"response_format": {"type": "json_object"}})))
    expect(page.get_by_test_id("answer").locator("pre")).to_have_text(json.dumps(json.loads(text), indent=2))
    page.get_by_role("button", name="Raw").click()
    assert answer_of(page) == text


def test_what_is_unfinished_is_rendered_too(door: Gateway, tab: Watched) -> None:
    """The partial text of a failed job, its reasoning, tool calls, and the turns before."""
    failed = ended(
        door, text="# Half\n\n**bold** rest", faults=[{"kind": "finish", "after": 6}], fields={"retry": {"attempts": 1}}
    )
    page = tab.open(job_url(door, failed))
    expect(head(page)).to_have_text("Failed")
    expect(page.get_by_test_id("answer").get_by_role("heading", name="Half")).to_be_visible()
    first = ended(door, "One", text="An **answer**.", reasoning="I *think*.")
    second = ended(door, "Two", text="Another.", fields={"previousJobId": first})
    page.goto(job_url(door, second))
    expect(page.locator(".message.assistant").first.locator("strong")).to_have_text("answer")
    tools = [{"type": "function", "function": {"name": "depth", "parameters": {"type": "object"}}}]
    called = ended(door, tool_calls=[{"name": "depth", "arguments": {"at": 1}}], fields={"tools": tools})
    page.goto(job_url(door, called))
    expect(page.locator(".message.assistant pre")).to_contain_text('"name": "depth"')
    expect(page.get_by_role("button", name="Copy code")).to_be_visible()


# --------------------------------------------------------------------------------------------------------- size

LONG = "\n\n".join(
    f"## Part {number}\n\nThe harbour *lies* still, and `nothing` moves. "
    + "The water is dark. " * 20
    + "\n\n- one\n- two **bold**\n- three\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```js\nconst x = 1;\n```"
    for number in range(200)
)
FRAMES = """() => {
  window.frames_ = [];
  let last = performance.now();
  const look = (now) => { window.frames_.push(now - last); last = now; window.looking = requestAnimationFrame(look); };
  requestAnimationFrame(look);
}"""


def test_a_long_answer_streams_without_holding_up_the_page(place: Stack, door: Gateway, tab: Watched) -> None:
    """100 KB through the whole service; the figures are printed."""
    words = uuid.uuid4().hex
    assert len(LONG) > 100_000
    page = tab.open(f"{door.url}/")
    place.simulator.script(match=words, times=1, text=LONG, tokens_per_second=4000)
    page.goto(job_url(door, post_plain(door, words)))
    wait_for_words_of(page, 1000)
    page.evaluate(FRAMES)
    expect(head(page)).to_have_text("Completed", timeout=120_000)
    assert report("100 KB, streamed", page) < 50
    expect(page.get_by_test_id("answer").locator("h5")).to_have_count(200)


def post_plain(door: Gateway, words: str) -> str:
    answer = test_page.HTTP.post(f"{door.url}/api/jobs", json={"messages": [{"role": "user", "content": words}]})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["jobId"])


def wait_for_words_of(page: Page, more_than: int) -> None:
    page.wait_for_function(test_page_use.HAS_WORDS, arg=more_than)


def test_megabytes_are_shown_as_they_are(place: Stack, door: Gateway, tab: Watched) -> None:
    """5 MB do not freeze the page; they are rendered where that is asked for, little by little."""
    words, text = uuid.uuid4().hex, "\n\n".join([LONG] * 48)
    assert len(text) > 5_000_000
    place.simulator.script(match=words, times=1, text=text, tokens_per_second=0, tokens_per_chunk=500)
    job_id = post_plain(door, words)
    page = tab.open(job_url(door, job_id))
    expect(head(page)).to_have_text("Completed", timeout=120_000)
    page.goto(job_url(door, job_id))
    page.evaluate(FRAMES)
    expect(page.get_by_text("is shown as it is")).to_be_visible()
    wait_for_words_of(page, len(text) - 1)
    report("5 MB, raw", page)
    assert answer_of(page) == text
    page.evaluate("() => (window.frames_.length = 0)")
    page.get_by_role("button", name="Render it").click()
    parts = "n => document.querySelectorAll('[data-testid=answer] h5').length === n"
    page.wait_for_function(parts, arg=200 * 48, timeout=240_000, polling=500)
    report("5 MB, rendered", page)
    page.get_by_role("button", name="Raw").click()
    wait_for_words_of(page, len(text) - 1)


def report(what: str, page: Page) -> float:
    """Print the figures of the frames since FRAMES; returns the median in ms."""
    frames = sorted(page.evaluate("window.frames_"))
    figures = {"median": statistics.median(frames), "p95": frames[int(len(frames) * 0.95)], "max": frames[-1]}
    print(what, len(frames), "frames, in ms:", {name: round(value, 1) for name, value in figures.items()})  # noqa: T201
    return float(figures["median"])
