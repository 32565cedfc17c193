// Requests to the server that sent this page, and its failures in words.
import { $ } from "./state.js";

const GONE = "The server does not answer. Is `qwenvl serve` still running? What you wrote is kept; ask again when it is.";
const CUT = "The server went away in the middle of the answer. What you asked is kept; ask again when it is back.";

export async function request(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error(GONE);
  });
  if (response.ok) return response;
  if (response.status === 401) {
    showLogin();
    sessionStorage.removeItem("key");
    throw new Error(key ? "This key is not one of the server's; type it again." : "This server asks for a key; its operator has it.");
  }
  const body = await response.json().catch(() => null);
  const wait = response.headers.get("Retry-After");
  const words = body?.error?.message ?? `The server failed (${response.status}); its log says why.`;
  throw new Error(words + (wait ? ` Try again in ${wait} s.` : ""));
}

function showLogin() {
  $("login").hidden = false;
  $("key").focus();
}

/* The events of a stream, each as an object, until [DONE]; a stream that ends before is an error. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Error(CUT);
    });
    if (done) throw new Error(CUT);
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}
