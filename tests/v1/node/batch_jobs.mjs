// Uploads requests, runs a batch job of them, and prints what Mistral's client made of every answer.
import { Mistral } from "@mistralai/mistralai";

const [serverURL] = process.argv.slice(2);
const mistral = new Mistral({ apiKey: "any", serverURL });
const endpoint = "/v1/chat/completions";
const model = "mistral-small-latest";

const requests = Array.from({ length: 20 }, (_, number) => ({
  customId: `item-${number}`,
  body: { messages: [{ role: "user", content: `Hello ${number}` }] },
}));
const lines = requests.map(({ customId, body }) => JSON.stringify({ custom_id: customId, body })).join("\n");

const ended = async (job) => {
  const until = Date.now() + 60_000;
  while (["QUEUED", "RUNNING"].includes(job.status)) {
    if (Date.now() > until) throw new Error(`the job does not end: ${JSON.stringify(job)}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
    job = await mistral.batch.jobs.get({ jobId: job.id });
  }
  return job;
};

const text = async (fileId) => new Response(await mistral.files.download({ fileId })).text();

const failure = async (call) => {
  try {
    await call();
  } catch (error) {
    return { name: error.constructor.name, status: error.statusCode };
  }
  throw new Error("it was not refused");
};

const file = await mistral.files.upload({
  file: { fileName: "in.jsonl", content: new Blob([lines]) },
  purpose: "batch",
});
const job = await ended(
  await mistral.batch.jobs.create({ inputFiles: [file.id], model, endpoint, metadata: { order: "42" } }),
);
const inline = await ended(await mistral.batch.jobs.create({ requests: requests.slice(0, 3), model, endpoint }));
const broken = await mistral.files.upload({
  file: { fileName: "broken.jsonl", content: new Blob(["{"]) },
  purpose: "batch",
});
const refused = await ended(await mistral.batch.jobs.create({ inputFiles: [broken.id], model, endpoint }));

console.log(
  JSON.stringify({
    file,
    shown: await mistral.files.retrieve({ fileId: file.id }),
    input: await text(file.id),
    job,
    output: await text(job.outputFile),
    inline: inline.outputs,
    refused,
    files: (await mistral.files.list({ pageSize: 2 })).data.length,
    jobs: (await mistral.batch.jobs.list({ status: ["SUCCESS"], metadata: { order: "42" } })).total,
    cancelled: (await mistral.batch.jobs.cancel({ jobId: job.id })).status,
    url: await (await fetch((await mistral.files.getSignedUrl({ fileId: file.id })).url)).text(),
    deleted: [await mistral.batch.jobs.delete({ jobId: inline.id }), await mistral.files.delete({ fileId: file.id })],
    failures: [
      await failure(() => mistral.files.retrieve({ fileId: file.id })),
      await failure(() => mistral.batch.jobs.get({ jobId: inline.id })),
      await failure(() => mistral.batch.jobs.create({ inputFiles: [file.id], model, endpoint })),
      await failure(() => mistral.batch.jobs.create({ inputFiles: [file.id], model, endpoint: "/v1/embeddings" })),
      await failure(() => mistral.files.upload({ file: { fileName: "a", content: new Blob(["a"]) }, purpose: "ocr" })),
    ],
  }),
);
