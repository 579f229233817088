// Descriptions of an OpenAPI document for the page. Pure.

const METHODS = ["post", "get", "put", "patch", "delete"];
const OTHERS = "Other";
const NULL = "null";

export const nameOf = (ref) => ref.split("/").at(-1);
export const schemaOf = (api, schema) => (schema.$ref ? api.components.schemas[nameOf(schema.$ref)] : schema);

/** The operations by their first tag, in document order: pairs of a tag and its operations. */
export function operationsOf(api) {
  const groups = new Map();
  for (const [path, operations] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((one) => operations[one])) {
      const operation = operations[method];
      const tag = operation.tags?.[0] ?? OTHERS;
      groups.set(tag, [...(groups.get(tag) ?? []), { id: `${method}${path.replaceAll(/[^A-Za-z0-9]+/g, "-")}`, method, path, operation }]);
    }
  }
  return [...groups];
}

/** A schema in one line: texts, and references as `{ref}`. Empty for any value. */
export function typeOf(schema) {
  if (schema.$ref) return [{ ref: schema.$ref }];
  if ("const" in schema) return [JSON.stringify(schema.const)];
  if (schema.enum) return joined(schema.enum.map((value) => [JSON.stringify(value)]));
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return joined(choices.filter((one) => one.type !== NULL).map(typeOf));
  if (schema.type === "array") return schema.items ? ["array of ", ...bracketed(typeOf(schema.items))] : ["array"];
  if (schema.type === "object" && typeof schema.additionalProperties === "object") return ["object of ", ...typeOf(schema.additionalProperties)];
  if (schema.type) return [schema.format ? `${schema.type} (${schema.format})` : [schema.type].flat().join(" | ")];
  return [];
}

const joined = (types) => types.filter((type) => type.length).flatMap((type, place) => (place ? [" | ", ...type] : type));
const bracketed = (type) => (type.includes(" | ") ? ["(", ...type, ")"] : type);

const LIMITS = {
  minimum: (value) => `≥ ${value}`,
  exclusiveMinimum: (value) => `> ${value}`,
  maximum: (value) => `≤ ${value}`,
  exclusiveMaximum: (value) => `< ${value}`,
  minLength: (value) => `≥ ${value} characters`,
  maxLength: (value) => `≤ ${value} characters`,
  minItems: (value) => `≥ ${value} items`,
  maxItems: (value) => `≤ ${value} items`,
  maxProperties: (value) => `≤ ${value} keys`,
  pattern: (value) => value,
};
const HUGE = 2 ** 31;

/** The constraints of a value in words, except limits that hold for numbers in general. */
export function limitsOf(schema) {
  const choices = (schema.anyOf ?? schema.oneOf ?? []).filter((one) => one.type !== NULL);
  const own = Object.entries(LIMITS).filter(([name]) => name in schema && !(typeof schema[name] === "number" && Math.abs(schema[name]) >= HUGE));
  const found = own.map(([name, word]) => word(schema[name]));
  if (choices.length === 1) found.push(...limitsOf(choices[0]));
  if (schema.default != null) found.push(`default ${JSON.stringify(schema.default)}`);
  return found;
}

/** Text split at `code` and ``code``. */
export function partsOf(text) {
  return text.split(/(``[^`]+``|`[^`]+`)/).filter(Boolean).map((part) => (part.startsWith("`") ? { code: true, text: part.replaceAll("`", "") } : { code: false, text: part }));
}
