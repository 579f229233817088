// BullMQ with Mistral's own client, with which bench/batch.py compares: `node worker.mjs REDIS_PORT CONCURRENCY`.
// Each line of stdin is the path of a file of batch lines. Once all its jobs are completed, stdout has a line of JSON.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { Mistral } from "@mistralai/mistralai";
import { Queue, Worker } from "bullmq";

const [port, concurrency] = process.argv.slice(2).map(Number);
const connection = { host: "127.0.0.1", port, maxRetriesPerRequest: null };
const mistral = new Mistral({ apiKey: process.env.MISTRAL_API_KEY, serverURL: process.env.MISTRAL_SERVER_URL });
const queue = new Queue("chat", { connection });

async function answer(job) {
  let text = "";
  for await (const event of await mistral.chat.stream(job.data)) text += event.data.choices[0].delta.content ?? "";
  return text;
}

let completed = () => {};
const worker = new Worker("chat", answer, { connection, concurrency });
worker.on("completed", (job, text) => completed(text));
worker.on("failed", (job, error) => {
  throw error;
});

for await (const path of createInterface({ input: process.stdin })) {
  const lines = readFileSync(path, "utf8").trim().split("\n");
  const jobs = lines.map((line) => ({ name: "chat", data: JSON.parse(line).body }));
  const began = performance.now();
  let left = jobs.length, bytes = 0;
  const all = new Promise((resolve) => {
    completed = (text) => ((bytes += Buffer.byteLength(text)), --left || resolve());
  });
  await queue.addBulk(jobs);
  await all;
  console.log(JSON.stringify({ jobs: jobs.length, bytes, seconds: (performance.now() - began) / 1000 }));
}
process.exit();
