// npm's openai against /v1.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { IMAGE, WEATHER, messages, run } from "./runner.mjs";

const counted = (usage) => (usage ? [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens] : null);

const outcome = ({ choices: [choice], usage }) => ({
  text: choice.message.content,
  calls: (choice.message.tool_calls ?? []).map((call) => [call.function.name, call.function.arguments]),
  finish: choice.finish_reason,
  usage: counted(usage),
});

const kinds = {
  async chat(client, given, asked = messages(given), further = {}) {
    return outcome(await client.chat.completions.create({ model: given.model, messages: asked, ...further }));
  },

  // With the package's own accumulator of chunks.
  async stream(client, given, further = {}) {
    let pieces = 0;
    const stream = client.chat.completions.stream({ model: given.model, messages: messages(given), ...further });
    stream.on("content", () => pieces++);
    return { ...outcome(await stream.finalChatCompletion()), pieces };
  },

  async reasoning(client, given) {
    let text = "", reasoning = "";
    const chunks = await client.chat.completions.create({ model: given.model, messages: messages(given), stream: true });
    for await (const { choices: [{ delta: { content } }] } of chunks) {
      for (const part of Array.isArray(content) ? content : [{ text: content ?? "" }]) {
        text += part.text ?? "";
        reasoning += (part.thinking ?? []).map((one) => one.text).join("");
      }
    }
    return { text, reasoning };
  },

  async tools(client, given) {
    const asked = messages(given);
    const done = await client.chat.completions.create({ model: given.model, messages: asked, tools: [WEATHER] });
    const { message } = done.choices[0];
    asked.push(message, { role: "tool", tool_call_id: message.tool_calls[0].id, content: "sunny" });
    return { ...outcome(done), then: (await kinds.chat(client, given, asked)).text };
  },

  tools_stream: (client, given) => kinds.stream(client, given, { tools: [WEATHER] }),

  async schema(client, given) {
    const response_format = zodResponseFormat(z.object({ answer: z.string() }), "answer");
    const done = await client.chat.completions.parse({ model: given.model, messages: messages(given), response_format });
    return { parsed: done.choices[0].message.parsed };
  },

  image(client, given) {
    const parts = [{ type: "text", text: given.prompt }, { type: "image_url", image_url: { url: IMAGE } }];
    return kinds.chat(client, given, [{ role: "user", content: parts }]);
  },

  async models(client) {
    const models = [];
    for await (const model of client.models.list()) models.push(model.id);
    return { models, one: (await client.models.retrieve(models[0])).id };
  },

  parameters: (client, given) =>
    kinds.chat(client, given, messages(given), { max_completion_tokens: 5, seed: 7, metadata: { order: "42" } }),
};

const clientOf = (given) =>
  new OpenAI({
    baseURL: `${given.url}/v1`, apiKey: given.key, defaultHeaders: given.headers, maxRetries: given.retries,
  });

run(clientOf, (error) => ({ status: error.status ?? null }), kinds);
