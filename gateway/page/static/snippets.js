// A call of the API as text for curl, Python and JavaScript. A key is never in it: it comes from the environment. Pure.

import { quoted } from "./format.js";

export const LANGUAGES = { curl, Python: python, JavaScript: javascript };
const KEY = "CHATJOBS_API_KEY";

/**
 * A call: `headers` are pairs, without Authorization; `body` is a text, or null; `parts` are the parts of a form, with
 * `file` (a name) or `value`; `streams`: its response may be a stream.
 * @typedef {{ method: string, url: string, headers: string[][], body: string | null, parts: { name: string, file?: string, value?: string }[] | null, keyed: boolean, streams: boolean }} Call
 */

function curl({ method, url, headers, body, parts, keyed, streams }) {
  const lines = [`curl ${streams ? "-N " : ""}-X ${method.toUpperCase()} ${quoted(url)}`];
  if (keyed) lines.push(`-H "Authorization: Bearer $${KEY}"`);
  lines.push(...headers.map(([name, value]) => `-H ${quoted(`${name}: ${value}`)}`));
  if (body !== null) lines.push(`--data-binary ${quoted(body)}`);
  if (parts) lines.push(...parts.map(({ name, file, value }) => `-F ${quoted(file === undefined ? `${name}=${value}` : `${name}=@${file}`)}`));
  return lines.join(" \\\n  ");
}

function python({ method, url, headers, body, parts, keyed, streams }) {
  const given = [...(keyed ? [`    "Authorization": f"Bearer {os.environ['${KEY}']}",`] : []), ...headers.map(([name, value]) => `    ${JSON.stringify(name)}: ${JSON.stringify(value)},`)];
  const lines = [...(keyed ? ["import os", ""] : []), "import httpx2", ""];
  const options = [JSON.stringify(method.toUpperCase()), JSON.stringify(url)];
  if (given.length) {
    lines.push("headers = {", ...given, "}");
    options.push("headers=headers");
  }
  if (body !== null) {
    lines.push(`body = ${pythonOf(body)}`);
    options.push("content=body.encode()");
  }
  if (parts) {
    const files = parts.filter((part) => part.file !== undefined).map(({ name, file }) => `${JSON.stringify(name)}: open(${JSON.stringify(file)}, "rb")`);
    const data = parts.filter((part) => part.file === undefined).map(({ name, value }) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`);
    options.push(`files={${files.join(", ")}}`, `data={${data.join(", ")}}`);
  }
  if (streams) {
    lines.push(`with httpx2.stream(${[...options, "timeout=None"].join(", ")}) as answer:`, "    for line in answer.iter_lines():", "        print(line)");
  } else {
    lines.push(`answer = httpx2.request(${[...options, "timeout=60"].join(", ")})`, "print(answer.status_code, answer.text)");
  }
  return lines.join("\n");
}

/** A text as a literal of Python, over several lines where it has them. */
function pythonOf(text) {
  const raw = !text.includes("\\") && !text.includes('"""') && !text.endsWith('"');
  return raw && text.includes("\n") ? `"""${text}"""` : JSON.stringify(text);
}

function javascript({ method, url, headers, body, parts, keyed, streams }) {
  const given = [...(keyed ? [`    Authorization: \`Bearer \${process.env.${KEY}}\`,`] : []), ...headers.map(([name, value]) => `    ${JSON.stringify(name)}: ${JSON.stringify(value)},`)];
  const lines = [];
  const options = [`  method: ${JSON.stringify(method.toUpperCase())},`];
  if (given.length) options.push("  headers: {", ...given, "  },");
  if (body !== null) options.push(`  body: ${javascriptOf(body)},`);
  if (parts) {
    if (parts.some((part) => part.file !== undefined)) lines.push('import { openAsBlob } from "node:fs";', "");
    lines.push("const form = new FormData();");
    lines.push(...parts.map(({ name, file, value }) => (file === undefined ? `form.append(${JSON.stringify(name)}, ${JSON.stringify(value)});` : `form.append(${JSON.stringify(name)}, await openAsBlob(${JSON.stringify(file)}), ${JSON.stringify(file)});`)));
    options.push("  body: form,");
  }
  lines.push(`const answer = await fetch(${JSON.stringify(url)}, {`, ...options, "});");
  if (streams) lines.push("for await (const text of answer.body.pipeThrough(new TextDecoderStream())) console.log(text);");
  else lines.push("console.log(answer.status, await answer.text());");
  return lines.join("\n");
}

/** A JSON text as an expression; any other text as a literal. */
function javascriptOf(text) {
  try {
    JSON.parse(text);
    return `JSON.stringify(${text.trim().replaceAll("\n", "\n  ")})`;
  } catch {
    return JSON.stringify(text);
  }
}
