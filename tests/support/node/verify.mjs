// Verify one webhook with the npm package "standardwebhooks", the specification's reference library.
// stdin: {"secret", "headers", "body"}; stdout: the event as JSON. Exits with 1 and the reason if it does not verify.
import { readFileSync } from "node:fs";
import { Webhook } from "standardwebhooks";

const { secret, headers, body } = JSON.parse(readFileSync(0, "utf8"));

// A secret without the prefix stands for its UTF-8 bytes; the library would take it for base64.
const webhook = secret.startsWith("whsec_")
  ? new Webhook(secret)
  : new Webhook(Buffer.from(secret, "utf8"), { format: "raw" });

try {
  process.stdout.write(JSON.stringify(webhook.verify(body, headers)));
} catch (error) {
  process.stderr.write(`${error.name}: ${error.message}\n`);
  process.exitCode = 1;
}
