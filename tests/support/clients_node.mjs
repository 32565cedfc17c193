// Asks a server through the AI SDK: a task as JSON on standard input, what its user gets as JSON on standard output.
// node clients_node.mjs FOLDER, in which the packages are installed.

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const required = createRequire(`${process.argv[2]}/`);
const { generateText, streamText, stepCountIs, tool, Output } = required("ai");
const { z } = required("zod");
const task = JSON.parse(readFileSync(0, "utf-8"));
const WEATHER = "Tell the weather of a city.";

function providedModel() {
  const options = { baseURL: task.base, apiKey: "none" };
  if (task.provider === "openai") return required("@ai-sdk/openai").createOpenAI(options)("nano");
  const { createOpenAICompatible } = required("@ai-sdk/openai-compatible");
  return createOpenAICompatible({ ...options, name: "qwenvl", supportsStructuredOutputs: true })("nano");
}

function user(first = "picture") {
  const content = [
    { type: "image", image: readFileSync(task.picture), mediaType: "image/png" },
    { type: "text", text: task.words },
  ];
  return [{ role: "user", content: first === "picture" ? content : content.reverse() }];
}

const common = { model: providedModel(), temperature: 0, maxRetries: 0 };
const city = { description: WEATHER, inputSchema: z.object({ city: z.string() }) };

const tasks = {
  async picture() {
    return (await generateText({ ...common, messages: user(task.first) })).text;
  },
  async stream() {
    const pieces = [];
    for await (const piece of streamText({ ...common, messages: user() }).textStream) pieces.push(piece);
    return pieces.join("");
  },
  async turns() {
    const said = [{ role: "assistant", content: task.answer }, { role: "user", content: task.more }];
    return (await generateText({ ...common, messages: [...user(), ...said] })).text;
  },
  async schema() {
    const output = Output.object({ schema: z.object({ n: z.number().int().min(0).max(9) }) });
    return (await generateText({ ...common, messages: user(), output })).output;
  },
  async tools() {
    return (await generateText({ ...common, prompt: "hi", tools: { weather: tool(city) } })).text;
  },
  async call() {
    const asked = [];
    const execute = async (given) => {
      asked.push(given.city);
      return `12 degrees in ${given.city}`;
    };
    const options = { prompt: task.words, tools: { weather: tool({ ...city, execute }) }, stopWhen: stepCountIs(2) };
    const answer = streamText({ ...common, ...options, onError: ({ error }) => { throw error; } });
    let pieces = 0;
    for await (const part of answer.fullStream) pieces += part.type === "tool-input-delta" ? 1 : 0;
    return { city: asked[0], text: await answer.text, pieces };
  },
  async overflow() {
    return (await generateText({ ...common, prompt: task.words })).text;
  },
  async four() {
    const all = [1, 2, 3, 4].map(() => generateText({ ...common, messages: user() }));
    return (await Promise.all(all)).map((each) => each.text);
  },
  async cancel() {
    const leaving = new AbortController();
    const answer = streamText({ ...common, messages: user(), abortSignal: leaving.signal, onError() {} });
    for await (const piece of answer.textStream) if (piece) leaving.abort();
    return null;
  },
};

try {
  console.log(JSON.stringify({ result: await tasks[task.feature]() }));
} catch (error) {
  console.log(JSON.stringify({ error: String(error.message ?? error) }));
}
