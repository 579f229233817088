// Vercel's AI SDK (npm's ai and @ai-sdk/mistral) against /v1.
import { createMistral } from "@ai-sdk/mistral";
import { generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { IMAGE, PARAMETERS, messages, run } from "./runner.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;
const asked = (given) => ({ model: given.client(given.model), messages: messages(given), maxRetries: given.retries });
const counted = (usage) => [usage.inputTokens, usage.outputTokens, usage.totalTokens];
const weather = (execute) =>
  tool({ description: "The weather in a city", inputSchema: jsonSchema(PARAMETERS), ...(execute ? { execute } : {}) });

const outcome = async (done) => ({
  text: await done.text,
  reasoning: (await done.reasoningText) ?? "",
  calls: (await done.toolCalls).map((call) => [call.toolName, call.input]),
  finish: await done.finishReason,
  usage: counted(await done.usage),
});

const kinds = {
  chat: async (client, given, further = {}) => outcome(await generateText({ ...asked(client), ...further })),

  async stream(client, given, further = {}) {
    let pieces = 0, failed;
    const done = streamText({ ...asked(client), ...further, onError: ({ error }) => { failed ??= error; } });
    for await (const piece of done.textStream) pieces += piece ? 1 : 0;
    if (failed) throw failed;
    return { ...(await outcome(done)), pieces };
  },

  reasoning: (client, given) => kinds.stream(client, given),

  // The SDK itself calls the tool and asks again.
  async tools(client, given) {
    const tools = { weather: weather(async () => "sunny") };
    const done = await generateText({ ...asked(client), tools, stopWhen: stepCountIs(2) });
    const [first] = done.steps;
    return { ...(await outcome(first)), then: done.text };
  },

  tools_stream: (client, given) => kinds.stream(client, given, { tools: { weather: weather() } }),

  async schema(client, given) {
    const output = Output.object({ schema: z.object({ answer: z.string() }) });
    return { parsed: (await generateText({ ...asked(client), output })).output };
  },

  image(client, given) {
    const content = [{ type: "text", text: given.prompt }, { type: "image", image: IMAGE }];
    return kinds.chat(client, given, { messages: [{ role: "user", content }] });
  },

  parameters: (client, given) => kinds.chat(client, given, { maxOutputTokens: 5, seed: 7 }),
};

const clientOf = (given) => ({
  ...given,
  client: createMistral({ baseURL: `${given.url}/v1`, apiKey: given.key, headers: given.headers }),
});

run(clientOf, (error) => ({ status: error.statusCode ?? error.lastError?.statusCode ?? null }), kinds);
