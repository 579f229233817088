// npm's @mistralai/mistralai against /v1.
import { Mistral } from "@mistralai/mistralai";
import { HTTPClient } from "@mistralai/mistralai/lib/http.js";
import { z } from "zod";
import { IMAGE, PARAMETERS, messages, run } from "./runner.mjs";

const WEATHER = { type: "function", function: { name: "weather", parameters: PARAMETERS } };
const counted = (usage) => (usage ? [usage.promptTokens, usage.completionTokens, usage.totalTokens] : null);

function split(content) {
  const parts = Array.isArray(content) ? content : [{ type: "text", text: content ?? "" }];
  return {
    text: parts.map((part) => (part.type === "text" ? part.text : "")).join(""),
    reasoning: parts.flatMap((part) => (part.type === "thinking" ? part.thinking : [])).map((one) => one.text).join(""),
  };
}

const outcome = ({ choices: [choice], usage }) => ({
  ...split(choice.message.content),
  calls: (choice.message.toolCalls ?? []).map((call) => [call.function.name, call.function.arguments]),
  finish: choice.finishReason,
  usage: counted(usage),
});

const kinds = {
  async chat(client, given, asked = messages(given), further = {}) {
    return outcome(await client.chat.complete({ model: given.model, messages: asked, ...further }));
  },

  async stream(client, given, further = {}) {
    const found = { text: "", reasoning: "", pieces: 0, calls: [], finish: null, usage: null };
    for await (const { data } of await client.chat.stream({ model: given.model, messages: messages(given), ...further })) {
      const [choice] = data.choices;
      const { text, reasoning } = split(choice.delta.content);
      found.text += text;
      found.reasoning += reasoning;
      found.pieces += text ? 1 : 0;
      found.calls.push(...(choice.delta.toolCalls ?? []).map((call) => [call.function.name, call.function.arguments]));
      found.finish = choice.finishReason ?? found.finish;
      found.usage = counted(data.usage) ?? found.usage;
    }
    return found;
  },

  reasoning: (client, given) => kinds.stream(client, given),

  async tools(client, given) {
    const asked = messages(given);
    const done = await client.chat.complete({ model: given.model, messages: asked, tools: [WEATHER] });
    const { message } = done.choices[0];
    asked.push(message, { role: "tool", toolCallId: message.toolCalls[0].id, content: "sunny" });
    return { ...outcome(done), then: (await kinds.chat(client, given, asked)).text };
  },

  tools_stream: (client, given) => kinds.stream(client, given, { tools: [WEATHER] }),

  async schema(client, given) {
    const responseFormat = z.object({ answer: z.string() });
    const done = await client.chat.parse({ model: given.model, messages: messages(given), responseFormat });
    return { parsed: done.choices[0].message.parsed };
  },

  image(client, given) {
    const parts = [{ type: "text", text: given.prompt }, { type: "image_url", imageUrl: { url: IMAGE } }];
    return kinds.chat(client, given, [{ role: "user", content: parts }]);
  },

  async models(client) {
    const models = (await client.models.list()).data.map((model) => model.id);
    return { models, one: (await client.models.retrieve({ modelId: models[0] })).id };
  },

  parameters: (client, given) =>
    kinds.chat(client, given, messages(given), { maxTokens: 5, randomSeed: 7, metadata: { order: "42" } }),
};

function clientOf(given) {
  const httpClient = new HTTPClient();
  httpClient.addHook("beforeRequest", (request) => {
    for (const [name, value] of Object.entries(given.headers ?? {})) request.headers.set(name, value);
    return request;
  });
  const backoff = { initialInterval: 100, maxInterval: 1000, exponent: 1.5, maxElapsedTime: 20000 };
  const retryConfig = given.retries
    ? { strategy: "backoff", backoff, retryConnectionErrors: true }
    : { strategy: "none" };
  return new Mistral({ serverURL: given.url, apiKey: given.key, httpClient, retryConfig });
}

run(clientOf, (error) => ({ status: error.statusCode ?? null }), kinds);
