// The conversation: questions, streamed answers, reasoning, calls of tools.
import { drawPlaces, placesOf } from "./drawing.js";
import { ideasFor, showStart } from "./examples.js";
import { part, refreshTray, show } from "./pictures.js";
import { events, request } from "./server.js";
import { $, element, say, state } from "./state.js";
import { takePicture } from "./webcam.js";

export function newConversation() {
  state.running?.abort();
  state.running = null;
  setRunning(false);
  state.messages = [];
  state.asked = state.places = [];
  state.items.forEach((item) => (item.sent = false));
  $("log").replaceChildren();
  drawPlaces();
  refresh();
}

/* What depends on the tray and the conversation: what the question is about, questions to try, the start. */
export function refresh() {
  const count = state.items.length + (state.camera ? 1 : 0);
  const clips = state.items.filter((item) => item.kind === "clip").length;
  const words = count === 1 ? (clips ? "the clip" : "the picture") : `${count} ${clips ? "pictures and clips" : "pictures"}`;
  $("about").textContent = count ? `You ask about ${words} that you see${state.camera ? ", the webcam's as it is then" : ""}.` : "";
  $("ideas").replaceChildren(...ideasFor(state.items, Boolean(state.camera)).map((words) => {
    const idea = element("button", { type: "button", textContent: words });
    idea.addEventListener("click", () => ask(words));
    return element("li", {}, idea);
  }));
  showStart(!$("log").children.length);
}

export function entry(role, text) {
  const item = element("li", { className: role, textContent: text });
  $("log").append(item);
  item.scrollIntoView({ block: "nearest" });
  return item;
}

export async function ask(question) {
  if (state.running) return;
  if (state.camera) await takePicture();
  if (state.examples.pictures_only && !state.items.length) {
    $("question").value ||= question;
    return say("This model answers about pictures: open one, or take an example.");
  }
  if ($("afresh").checked) state.items.forEach((item) => (item.sent = false));
  const before = $("afresh").checked ? [] : state.messages;
  const fresh = state.items.filter((item) => !item.sent);
  const content = [...fresh.map(part), { type: "text", text: question }];
  entry("user", question);
  await answer([...before, { role: "user", content }], fresh, question);
}

/* Have the conversation `messages` answered. fresh: the items of its last message. question: what to give back. */
async function answer(messages, fresh, question) {
  const item = entry("assistant", "");
  const running = (state.running = new AbortController());
  setRunning(true);
  say("");
  try {
    const body = JSON.stringify({ model: state.model, messages, stream: true, ...options() });
    const response = await request("/v1/chat/completions", { method: "POST", body, signal: running.signal });
    const reply = await readAnswer(response, item, fresh.length ? fresh : state.asked);
    if (running.signal.aborted) return;
    state.messages = [...messages, reply];
    fresh.forEach((each) => (each.sent = true));
    if (reply.tool_calls) askForResults(reply.tool_calls, item);
  } catch (error) {
    if (error.name === "AbortError") {
      item.append(" (stopped)");
    } else {
      item.className = "error";
      item.textContent = error.message;
      $("question").value ||= question;
    }
  } finally {
    if (state.running === running) {
      state.running = null;
      setRunning(false);
    }
    refresh();
    item.scrollIntoView({ block: "nearest" });
  }
}

/* The options that are set, as fields of a request. */
function options() {
  const read = (id, name) => {
    const text = $(id).value.trim();
    try {
      return text && JSON.parse(text);
    } catch (error) {
      throw new Error(`${name} under Options is no JSON: ${error.message}`);
    }
  };
  const chosen = {};
  if ($("temperature").value) chosen.temperature = Number($("temperature").value);
  if ($("tokens").value) chosen.max_tokens = Number($("tokens").value);
  const schema = read("schema", "The JSON Schema");
  if (schema) chosen.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  const tools = read("tools", "The list of tools");
  if (tools) chosen.tools = tools;
  return chosen;
}

/* Read a streamed answer into its entry of the log; return its message. */
export async function readAnswer(response, item, asked) {
  const reply = { role: "assistant", content: "" };
  const calls = [];
  const began = performance.now();
  let thoughts = null;
  let text = null;
  for await (const event of events(response)) {
    const delta = event.choices[0].delta;
    if (delta.reasoning_content) {
      thoughts ??= unfold(item);
      thoughts.lastChild.textContent += delta.reasoning_content;
    }
    if (delta.content) {
      if (thoughts && !text) fold(thoughts, began);
      if (!text) item.append((text = element("span")));
      reply.content += delta.content;
      text.textContent = reply.content;
      item.scrollIntoView({ block: "nearest" });
    }
    for (const call of delta.tool_calls ?? []) {
      calls[call.index] ??= { id: call.id, type: "function", function: { name: call.function.name, arguments: "" } };
      calls[call.index].function.arguments += call.function.arguments ?? "";
    }
    if (delta.qwenvl) finish(delta.qwenvl, reply, asked);
  }
  if (thoughts) fold(thoughts, began);
  if (calls.length) reply.tool_calls = calls;
  else if (!reply.content) item.append(element("em", { textContent: "(an empty answer)" }));
  return reply;
}

function finish(found, reply, asked) {
  reply.qwenvl = { raw_text: found.raw_text };
  state.asked = asked;
  state.places = placesOf(found);
  const seen = state.places.map((place) => asked[place.image]);
  if (seen.length && !seen.includes(state.shown) && seen[0]) show(seen[0]);
  refreshTray();
  const cut = found.finish_reason === "stop" ? "" : ` Ended early: ${found.finish_reason}.`;
  say(`${found.ttft_ms?.toFixed(0) ?? "?"} ms to the first token, ${found.tokens_per_s.toFixed(0)} tokens/s.${cut}`);
}

function unfold(item) {
  const thoughts = element("details", { className: "thinking", open: true });
  thoughts.append(element("summary", { textContent: "Thinking …" }), element("div"));
  item.append(thoughts);
  return thoughts;
}

function fold(thoughts, began) {
  if (!thoughts.open || thoughts.dataset.done) return;
  thoughts.dataset.done = "yes";
  thoughts.open = false;
  thoughts.firstChild.textContent = `Thought for ${((performance.now() - began) / 1000).toFixed(1)} s`;
}

/* Show each call with a field for what it gives; the conversation goes on when all are filled in. */
function askForResults(calls, item) {
  const form = element("form", { className: "calls" });
  const fields = calls.map((call) => {
    const field = element("input", { type: "text", required: true, placeholder: "what the tool gives" });
    form.append(element("label", {}, element("code", { textContent: `${call.function.name}(${call.function.arguments})` }), field));
    return field;
  });
  const button = element("button", { type: "submit", textContent: "Go on" });
  form.append(button);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (state.running) return;
    [...fields, button].forEach((each) => (each.disabled = true));
    const results = calls.map((call, number) => ({ role: "tool", tool_call_id: call.id, content: fields[number].value }));
    answer([...state.messages, ...results], [], "");
  });
  item.append(form);
}

function setRunning(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
}
