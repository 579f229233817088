// Calls of the official client for Node, one for each line of JSON on standard input, as ../clients/openai_bridge.py.

import { createInterface } from "node:readline";
import OpenAI from "openai";

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

async function answer(call) {
  const client = new OpenAI({ baseURL: call.url, apiKey: call.key ?? "none", maxRetries: 0, timeout: 60_000 });
  const { params = {}, args = [], headers = {} } = call;
  if (call.method === "webhooks.unwrap")
    return say({ result: await client.webhooks.unwrap(params.payload, params.received, params.secret) });
  const path = call.method.split(".");
  const name = path.pop();
  const owner = path.reduce((found, step) => found[step === "input_items" ? "inputItems" : step], client);
  const result = owner[name](...args, ...(name === "cancel" || name === "delete" ? [] : [params]), { headers });
  if (name === "stream") {
    for await (const event of result) say({ event });
    return say({ result: await result.finalResponse() });
  }
  if (name === "list") {
    const items = [];
    for await (const item of result) items.push(item);
    return say({ result: items });
  }
  const found = await result;
  if (!params.stream) return say({ result: found ?? null, output_text: found?.output_text, parsed: found?.output_parsed });
  let number = 0;
  for await (const event of found) {
    say({ event });
    if (++number === call.stop_after) break;
  }
  return say({ result: null });
}

for await (const line of createInterface({ input: process.stdin })) {
  try {
    await answer(JSON.parse(line));
  } catch (error) {
    const { status, code, param } = error;
    say({ error: error.constructor.name, message: String(error.message), status, code, param, body: error.error });
  }
}
