import { z } from "zod";
import { ACTION_METHODS, type Action, type ActionMethod, type Endpoint, type Endpoints } from "./endpoint.ts";

/** The admin listener as OpenAPI 3.1, made of the very schemas that check what comes in. */

type Json = Readonly<Record<string, unknown>>;

/** The shape of every error. */
export const ERROR = z.strictObject({
  error: z.string().describe("A sentence for a person."),
  code: z.string().optional().describe("A word of RFC 9209 or of ours, such as `session_store_unavailable`."),
});

export function renderOpenApi(version: string, endpoints: Endpoints): Json {
  const paths = [...endpoints].map(([path, endpoint]) => [path, pathItem(path, endpoint)] as const);
  return {
    openapi: "3.1.1",
    info: {
      title: "Coatcheck admin listener",
      version,
      description:
        "For operators. HEAD is answered as GET. A path that is not here is answered with 404, a method that is not here with 405 and `Allow`, both in the shape of every error. With no admin.token set, the listener answers to loopback names only and asks nobody for a token.",
      license: { name: "Apache-2.0", identifier: "Apache-2.0" },
    },
    servers: [{ url: "/" }],
    security: [{ token: [] }],
    paths: Object.fromEntries(paths),
    components: {
      securitySchemes: {
        token: { type: "http", scheme: "bearer", description: "`admin.token` of the configuration." },
      },
      responses: SHARED,
      schemas: { Error: schemaOf(ERROR, "output") },
    },
  };
}

function pathItem(path: string, endpoint: Endpoint): Json {
  const place = /\{(.+)\}$/.exec(path)?.[1];
  const operations = ACTION_METHODS.flatMap((method) => {
    const action = endpoint.actions[method];
    return action === undefined ? [] : [[method.toLowerCase(), operation(method, path, endpoint, action)] as const];
  });
  return {
    ...(place !== undefined &&
      endpoint.name !== undefined && { parameters: [parameter(place, "path", endpoint.name)] }),
    ...Object.fromEntries(operations),
  };
}

function operation(method: ActionMethod, path: string, endpoint: Endpoint, action: Action): Json {
  const { about, query, body } = action;
  const parameters = Object.entries(query?.shape ?? {}).map(([name, schema]) => parameter(name, "query", schema));
  return {
    operationId: operationId(method, path),
    summary: about,
    ...(endpoint.open && { security: [] }),
    ...(parameters.length > 0 && { parameters }),
    ...(body !== undefined && {
      requestBody: { required: true, content: jsonContent(schemaOf(body, "input")) },
    }),
    responses: responses(endpoint, action),
  };
}

function responses(endpoint: Endpoint, action: Action): Json {
  const { query, body, answer, page, statuses = {} } = action;
  const content =
    typeof answer === "string"
      ? { [answer]: { schema: answer.includes("text") ? { type: "string" } : {} } }
      : jsonContent(schemaOf(answer, "output"));
  const others = Object.entries(statuses).map(([status, told]) => [
    status,
    typeof told === "string"
      ? error(told)
      : { description: told.when, content: jsonContent(schemaOf(told.answer, "output")) },
  ]);
  return {
    200: { description: "done", content: { ...content, ...(page && { "text/html": { schema: { type: "string" } } }) } },
    ...((query ?? body ?? endpoint.name) !== undefined && { 400: shared("NotAsDescribed") }),
    ...(!endpoint.open && { 401: shared("Unauthorized") }),
    403: shared("Forbidden"),
    ...(body !== undefined && { 413: shared("TooLarge"), 415: shared("NotJson") }),
    500: shared("Mistake"),
    ...Object.fromEntries(others),
  };
}

/** Answers of many endpoints. */
const SHARED = {
  NotAsDescribed: error("a parameter or the body is not as described"),
  Unauthorized: error("the token is missing or wrong"),
  Forbidden: error(
    "a web page of another origin asks for more than to read, or, without a token, somebody by a name that is not loopback",
  ),
  TooLarge: error("the body is larger than 64 KiB"),
  NotJson: error("the body is not declared as application/json"),
  Mistake: error("a mistake in Coatcheck; the log tells more"),
};

function shared(name: keyof typeof SHARED): Json {
  return { $ref: `#/components/responses/${name}` };
}

function error(description: string): Json {
  return { description, content: jsonContent({ $ref: "#/components/schemas/Error" }) };
}

function jsonContent(schema: Json): Json {
  return { "application/json": { schema } };
}

function parameter(name: string, place: "query" | "path", schema: z.core.$ZodType): Json {
  const { description, default: fallback, ...rest } = querySchemaOf(schema);
  const required = place === "path" || !z.safeParse(schema, undefined).success;
  return {
    name,
    in: place,
    required,
    ...(description !== undefined && { description }),
    schema: { ...rest, ...(fallback !== undefined && { default: fallback }) },
  };
}

/** What a text in the query stands for says more than that it is a text; where that is not known, the text is shown. */
function querySchemaOf(schema: z.core.$ZodType): Json {
  const output = schemaOf(schema, "output");
  return "type" in output || "enum" in output || "anyOf" in output ? output : schemaOf(schema, "input");
}

function schemaOf(schema: z.core.$ZodType, io: "input" | "output"): Json {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io, unrepresentable: "any" });
  return rest;
}

/** `GET /sessions/{handle}` is `getSessionsHandle`. */
function operationId(method: string, path: string): string {
  const words = path.match(/[A-Za-z]+/g) ?? ["index"];
  return method.toLowerCase() + words.map((word) => word.charAt(0).toUpperCase() + word.slice(1)).join("");
}
