// A small language model behind Mistral's wire: node server.mjs MODEL.gguf PORT
//
// POST /v1/chat/completions, streaming only, always at temperature 0. An assistant's last message with `prefix: true` is
// repeated first and then continued. One answer at a time: others wait for their turn. It knows nothing of tests.
// One thread: two wait for each other at every layer, which on a busy machine makes them a hundred times slower.
import {createServer} from "node:http";
import {getLlama} from "node-llama-cpp";

const [path, port] = process.argv.slice(2);
const CONTEXT_TOKENS = 1024;
const llama = await getLlama({gpu: false, maxThreads: 1, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext({contextSize: CONTEXT_TOKENS, sequences: 1, threads: 1});
const sequence = context.getSequence();

// The chat template of SmolLM2-Instruct, by hand. Only the marks are special tokens, whatever the text says.
function spoken(messages) {
    const last = messages.at(-1);
    const prefix = last.role === "assistant" && last.prefix ? last.content : "";
    const said = prefix ? messages.slice(0, -1) : messages;
    const turn = (role, text) => [...model.tokenize("<|im_start|>", true), ...model.tokenize(`${role}\n${text}`)];
    const end = [...model.tokenize("<|im_end|>", true), ...model.tokenize("\n")];
    const turns = said.flatMap(({role, content}) => [...turn(role, content), ...end]);
    return {prefix, tokens: [...turns, ...turn("assistant", ""), ...model.tokenize(prefix)]};
}

// The answer's pieces, and how it ended. All of it is made into text each time: a token may be part of a character.
async function* answer(tokens, most, gone) {
    const said = [];
    let shown = "";
    await sequence.clearHistory();
    if (gone.aborted || most < 1) return {reason: "length", count: 0};
    for await (const token of sequence.evaluate(tokens, {temperature: 0, yieldEogToken: true})) {
        if (gone.aborted || model.isEogToken(token)) return {reason: "stop", count: said.length};
        said.push(token);
        const text = model.detokenize(said);
        if (!text.endsWith("\ufffd") && text.length > shown.length) {
            yield text.slice(shown.length);
            shown = text;
        }
        if (said.length >= most || tokens.length + said.length >= CONTEXT_TOKENS) break;
    }
    return {reason: "length", count: said.length};
}

async function complete(body, response, gone) {
    const {prefix, tokens} = spoken(body.messages);
    const frame = (delta, reason = null, more = {}) => response.write("data: " + JSON.stringify({
        id: "real", object: "chat.completion.chunk", created: 0, model: body.model,
        choices: [{index: 0, delta, finish_reason: reason}], ...more
    }) + "\n\n");
    response.writeHead(200, {"content-type": "text/event-stream", connection: "close"});
    frame({role: "assistant", content: prefix});
    const pieces = answer(tokens, body.max_tokens ?? CONTEXT_TOKENS, gone);
    let next;
    while (!(next = await pieces.next()).done) frame({content: next.value});
    const {reason, count} = next.value;
    const usage = {prompt_tokens: tokens.length, completion_tokens: count, total_tokens: tokens.length + count};
    frame({content: ""}, reason, {usage});
    response.end("data: [DONE]\n\n");
}

let turn = Promise.resolve();
createServer(async (request, response) => {
    const gone = new AbortController();
    response.on("close", () => gone.abort());
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    if (request.method !== "POST") return response.writeHead(404).end();
    const body = JSON.parse(Buffer.concat(chunks).toString());
    turn = turn.then(() => complete(body, response, gone.signal)).catch((error) => {
        console.error(error);
        response.destroy();
    });
}).listen(Number(port), "127.0.0.1", () => console.log("listening"));
