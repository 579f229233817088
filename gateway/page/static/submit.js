// The form for a new batch. A chosen file is sent as it is: the browser reads it while it sends it.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { isAway, jobs, newKey } from "./api.js";
import { size } from "./format.js";
import { Field, ModelField, Trouble } from "./parts.js";
import { go } from "./places.js";

const SAMPLE = '{"custom_id": "1", "body": {"messages": [{"role": "user", "content": "Why is the sky blue?"}]}}';
const LINE = /^\/lines\/(\d+)(.*)$/;

export function NewBatch() {
  const [file, setFile] = useState(null);
  const [sending, setSending] = useState(null);
  const [problem, setProblem] = useState(null);
  const form = useRef(null);
  const sent = useRef({ what: null, key: null });
  useEffect(() => () => sending?.abort(), [sending]);

  const submit = async (event) => {
    event.preventDefault();
    const given = new FormData(form.current);
    const lines = file ?? new Blob([given.get("lines")]);
    const settings = settingsOf(given);
    const what = JSON.stringify([settings, file ? [file.name, file.size, file.lastModified] : given.get("lines")]);
    if (sent.current.what !== what) sent.current = { what, key: await newKey() };
    const upload = new AbortController();
    setSending(upload);
    setProblem(null);
    try {
      const options = { ...settings, idempotencyKey: sent.current.key, signal: upload.signal };
      const accepted = await jobs.batches.submit(lines, options);
      sent.current = { what: null, key: null };
      go(`/batches/${encodeURIComponent(accepted.batchId)}`);
    } catch (error) {
      if (upload.signal.aborted) return setSending(null);
      setProblem(await explained(error, file));
      setSending(null);
    }
  };
  const choose = (event) => {
    setFile(event.currentTarget.files[0] ?? null);
    setProblem(null);
  };
  const remove = () => {
    form.current.elements.file.value = "";
    setFile(null);
    form.current.elements.file.focus();
  };

  return html`<details class="card new-batch">
    <summary><h2>New batch</h2></summary>
    <form ref=${form} onSubmit=${submit} aria-label="New batch">
      <p class="muted">One request in each line, as in Mistral’s and OpenAI’s batch files. Nothing starts unless every line is valid.</p>
      <div class="given">
        <label class="field"><span>File <small>JSONL, of any size</small></span>
          <input type="file" name="file" accept=".jsonl,.ndjson,.txt,application/jsonl,application/x-ndjson" onChange=${choose} /></label>
        ${file ? html`<button type="button" class="quiet" onClick=${remove}>Remove ${file.name}</button>` : null}
      </div>
      <label class="field" hidden=${Boolean(file)}><span>Or lines</span>
        <textarea name="lines" class="code" rows="5" wrap="off" spellcheck=${false} placeholder=${SAMPLE} required disabled=${Boolean(file)}></textarea></label>
      <div class="fields">
        <${Field} name="name" title="Name" maxlength="256" placeholder="nightly summaries" autocomplete="off" />
        <${ModelField} initial="" list="models-batch" hint="of lines without one" required=${false} placeholder="mistral-small-latest" />
        <${Field} name="concurrency" title="At once" hint="most jobs" type="number" min="1" max="10000" placeholder="as many as the workers can" />
      </div>
      <${Problems} problem=${problem} box=${file ? null : form.current?.elements.lines} />
      <div class="send">
        <span role="status" class="muted">${sending ? `Sending ${file ? `${file.name}, ${size(file.size)}` : "the lines"}…` : ""}</span>
        ${sending ? html`<button type="button" onClick=${() => sending.abort()}>Stop</button>` : null}
        <button class="primary" disabled=${Boolean(sending)}>${sending ? "Sending…" : "Submit batch"}</button>
      </div>
    </form>
  </details>`;
}

/** The settings of an upload that are filled in. */
function settingsOf(given) {
  const settings = {};
  for (const name of ["name", "concurrency"]) if (given.get(name).trim()) settings[name] = given.get(name).trim();
  const model = given.get("model").trim();
  if (model) settings.defaults = { model };
  return settings;
}

/** The browser fails a request whose file was changed or removed after it was chosen, as if the service were away. */
async function explained(error, file) {
  if (!isAway(error) || !file) return error;
  const there = await file.slice(0, 1).arrayBuffer().then((bytes) => bytes.byteLength > 0, () => false);
  return there ? error : { message: `${file.name} has changed since it was chosen, or is gone. Choose it again.` };
}

/** The problems of a refused upload by the lines that they are in; `box`: the text area that has these lines. */
function Problems({ problem, box }) {
  const placed = problem?.problems?.map((one) => ({ ...one, line: LINE.exec(one.pointer) })) ?? [];
  if (!placed.some((one) => one.line)) return html`<${Trouble} problem=${problem} />`;
  return html`<div class="trouble" role="alert">
    <p>The batch is not valid, and nothing was started.</p>
    <ul class="lines">${placed.map(({ line, pointer, message }) => html`<li>
      ${!line ? html`<code>${pointer}</code> ` : box ? html`<button type="button" onClick=${() => showLine(box, Number(line[1]))}>Line ${line[1]}</button>` : html`<b>Line ${line[1]}</b>`}
      ${" "}${message.replace(/^line \d+: /, "")}
    </li>`)}</ul>
  </div>`;
}

/** Select a line of the text area, and scroll to it. */
function showLine(box, number) {
  const lines = box.value.split("\n");
  const start = lines.slice(0, number - 1).reduce((sum, line) => sum + line.length + 1, 0);
  box.focus();
  box.setSelectionRange(start, start + lines[number - 1].length);
  box.scrollTop = ((number - 2) * box.scrollHeight) / lines.length;
}
