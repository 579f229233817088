// Runs the cases of a plan with a client: reads the plan (JSON) from stdin, writes the outcome of each case to stdout.

export const IMAGE = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=";
export const PARAMETERS = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
export const WEATHER = {
  type: "function",
  function: { name: "weather", description: "The weather in a city", parameters: PARAMETERS },
};

export const messages = (given) => [{ role: "user", content: given.prompt }];

export async function run(clientOf, failure, kinds) {
  let text = "";
  for await (const piece of process.stdin) text += piece;
  const outcomes = {};
  for (const [name, given] of Object.entries(JSON.parse(text))) {
    try {
      outcomes[name] = await kinds[given.kind](clientOf(given), given);
    } catch (error) {
      outcomes[name] = { error: { type: error.constructor.name, message: String(error), ...failure(error) } };
    }
  }
  process.stdout.write(JSON.stringify(outcomes), () => process.exit(0));
}
