// The page at /: a conversation about pictures and clips, over the server's own /v1/chat/completions.
import { loadExamples } from "./examples.js";
import { addFiles } from "./pictures.js";
import { request } from "./server.js";
import { $, say, state } from "./state.js";
import { ask, newConversation, refresh } from "./talk.js";
import { leaveWebcam, openWebcam, takePicture, toggleRecording } from "./webcam.js";

async function connect() {
  try {
    const [model] = (await (await request("/v1/models")).json()).data;
    state.clips = model.input_modalities.includes("video");
    $("file").accept = state.clips ? "image/*,video/*" : "image/*";
    $("record").hidden = !state.clips;
    await loadExamples();
    state.model = $("model").textContent = model.id;
    $("login").hidden = true;
    say("");
    $("question").focus();
  } catch (error) {
    say(error.message);
  }
  refresh();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || state.running) return;
  $("question").value = "";
  if (state.model) return ask(question);
  connect().then(() => {
    if (state.model) return ask(question);
    $("question").value = question;
  });
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (state.running) state.running.abort();
  else leaveWebcam();
});
for (const [id, does] of Object.entries({
  stop: () => state.running?.abort(),
  new: () => {
    newConversation();
    say("");
    $("question").focus();
  },
  webcam: openWebcam,
  take: takePicture,
  record: toggleRecording,
  leave: leaveWebcam,
})) {
  $(id).addEventListener("click", does);
}
$("file").addEventListener("change", async () => {
  const files = [...$("file").files];
  $("file").value = "";
  await addFiles(files);
  $("question").focus();
});
document.addEventListener("paste", (event) => {
  addFiles([...event.clipboardData.files]);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") addFiles([...event.dataTransfer.files]);
  });
}
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value);
  $("key").value = "";
  connect();
});
connect();
