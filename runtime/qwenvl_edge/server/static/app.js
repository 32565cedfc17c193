// The page at /: one conversation about one picture, over the server's own /v1/chat/completions.
"use strict";

const $ = (id) => document.getElementById(id);
const LONGEST_SIDE = 1600; // what is larger is scaled down before it is sent
const COLOURS = ["#e6194b", "#1f6feb", "#2a9d3a", "#d98200", "#911eb4", "#0aa1a1"];

const state = { model: "", messages: [], picture: null, sent: false, boxes: [], running: null, camera: null };

function headers() {
  const key = sessionStorage.getItem("key");
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function request(path, options = {}) {
  const response = await fetch(path, { ...options, headers: headers() });
  if (response.ok) return response;
  if (response.status === 401) showLogin();
  const body = await response.json().catch(() => null);
  const wait = response.headers.get("Retry-After");
  throw new Error((body?.error?.message ?? `The server answered ${response.status}.`) + (wait ? ` (${wait} s)` : ""));
}

function say(text) {
  $("status").textContent = text;
}

function showLogin() {
  $("login").hidden = false;
  $("key").focus();
}

async function connect() {
  try {
    const models = await (await request("/v1/models")).json();
    state.model = models.data[0].id;
    $("model").textContent = state.model;
    $("login").hidden = true;
    say("");
  } catch (error) {
    say(error.message);
  }
}

// The picture

async function usePicture(blob) {
  try {
    const bitmap = await createImageBitmap(blob);
    const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(bitmap.width * scale);
    canvas.height = Math.round(bitmap.height * scale);
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    newConversation();
    state.picture = canvas.toDataURL("image/png");
    $("picture").src = state.picture;
    await $("picture").decode();
    $("stage").hidden = false;
    $("hint").hidden = true;
    $("remove").disabled = false;
    showBoxes([]);
    say(`Picture: ${canvas.width} × ${canvas.height} pixels.`);
    $("question").focus();
  } catch (error) {
    say("This file is no picture that the browser can read.");
  }
}

function removePicture() {
  newConversation();
  state.picture = null;
  $("stage").hidden = true;
  $("hint").hidden = false;
  $("remove").disabled = true;
  showBoxes([]);
}

function showBoxes(boxes) {
  state.boxes = boxes;
  const canvas = $("boxes");
  const image = $("picture");
  canvas.width = image.naturalWidth || 1;
  canvas.height = image.naturalHeight || 1;
  const context = canvas.getContext("2d");
  const unit = Math.max(canvas.width, canvas.height) / 300;
  context.lineWidth = unit;
  context.font = `${Math.round(unit * 9)}px system-ui, sans-serif`;
  $("found").replaceChildren();
  boxes.forEach((box, number) => {
    const colour = COLOURS[number % COLOURS.length];
    context.strokeStyle = colour;
    context.strokeRect(box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1);
    drawLabel(context, box, colour, unit);
    const item = document.createElement("li");
    item.style.borderColor = colour;
    item.textContent = `${box.label || "box"} (${[box.x1, box.y1, box.x2, box.y2].map(Math.round).join(", ")})`;
    $("found").append(item);
  });
}

function drawLabel(context, box, colour, unit) {
  if (!box.label) return;
  const height = unit * 12;
  const width = context.measureText(box.label).width + 6 * unit;
  const top = box.y1 >= height ? box.y1 - height : box.y1;
  const left = Math.max(0, Math.min(box.x1, context.canvas.width - width));
  context.fillStyle = colour;
  context.fillRect(left, top, width, height);
  context.fillStyle = "#fff";
  context.fillText(box.label, left + 3 * unit, top + 9 * unit);
}

// The webcam: a first press shows it, a second takes the picture.

async function toggleWebcam() {
  const video = $("video");
  if (state.camera) {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    stopWebcam();
    canvas.toBlob(usePicture);
    return;
  }
  try {
    state.camera = await navigator.mediaDevices.getUserMedia({ video: true });
  } catch (error) {
    say("The webcam cannot be used; browsers allow it on localhost and over https only.");
    return;
  }
  video.srcObject = state.camera;
  await video.play();
  video.hidden = false;
  $("stage").hidden = $("hint").hidden = true;
  $("webcam").textContent = "Take picture";
  $("webcam").setAttribute("aria-pressed", "true");
}

function stopWebcam() {
  state.camera.getTracks().forEach((track) => track.stop());
  state.camera = null;
  $("video").hidden = true;
  $("webcam").textContent = "Webcam";
  $("webcam").setAttribute("aria-pressed", "false");
}

// The conversation

function newConversation() {
  state.running?.abort();
  state.messages = [];
  state.sent = false;
  $("log").replaceChildren();
  if (state.picture) showBoxes([]);
}

function entry(role, text) {
  const item = document.createElement("li");
  item.className = role;
  item.textContent = text;
  $("log").append(item);
  item.scrollIntoView({ block: "nearest" });
  return item;
}

async function ask(question) {
  const content = [{ type: "text", text: question }];
  const first = state.picture && !state.sent;
  if (first) content.unshift({ type: "image_url", image_url: { url: state.picture } });
  const message = { role: "user", content };
  entry("user", question);
  const item = entry("assistant", "");
  const running = (state.running = new AbortController());
  setRunning(true);
  try {
    const messages = [...state.messages, message];
    const body = JSON.stringify({ model: state.model, messages, stream: true });
    const response = await request("/v1/chat/completions", { method: "POST", body, signal: running.signal });
    const answer = await readAnswer(response, item);
    state.messages = [...messages, answer];
    state.sent = state.sent || Boolean(first);
  } catch (error) {
    if (error.name === "AbortError") {
      item.textContent += " (stopped)";
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
  }
}

async function readAnswer(response, item) {
  const answer = { role: "assistant", content: "" };
  let thought = "";
  for await (const event of events(response.body)) {
    if (event.error) throw new Error(event.error.message);
    const delta = event.choices[0].delta;
    if (delta.reasoning_content && !answer.content) {
      thought += delta.reasoning_content;
      item.textContent = thought;
      item.classList.add("thinking");
    }
    if (delta.content) {
      item.classList.remove("thinking");
      answer.content += delta.content;
      item.textContent = answer.content;
      item.scrollIntoView({ block: "nearest" });
    }
    if (delta.qwenvl) {
      answer.qwenvl = { raw_text: delta.qwenvl.raw_text };
      if (state.picture) showBoxes(delta.qwenvl.boxes);
      say(`${delta.qwenvl.ttft_ms.toFixed(0)} ms to the first token, ${delta.qwenvl.tokens_per_s.toFixed(0)} tokens/s.`);
    }
  }
  return answer;
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function setRunning(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
}

// Wiring

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || state.running) return;
  $("question").value = "";
  ask(question);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") state.running?.abort();
});
$("stop").addEventListener("click", () => state.running?.abort());
$("new").addEventListener("click", newConversation);
$("remove").addEventListener("click", removePicture);
$("webcam").addEventListener("click", toggleWebcam);
$("file").addEventListener("change", () => {
  if ($("file").files.length) usePicture($("file").files[0]);
  $("file").value = "";
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (file) usePicture(file);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) usePicture(event.dataTransfer.files[0]);
  });
}
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value);
  $("key").value = "";
  connect();
});
connect();
