// Pictures and questions to begin with: the bundle's own, and questions that any model can be asked.
import { addPicture, removeAll } from "./pictures.js";
import { request } from "./server.js";
import { $, element, say, state } from "./state.js";
import { ask } from "./talk.js";
import { leaveWebcam } from "./webcam.js";

const ONE = ["Describe the picture.", "What stands out in it?", "Is there any text in it? What does it say?"];
const SEVERAL = ["What is different between the pictures?", "Describe each picture."];
const CLIP = ["What happens in the clip?", "Describe the clip step by step."];
const pictures = new Map(); // of examples: name -> bitmap

export async function loadExamples() {
  state.examples = await (await request("/page/examples")).json();
  $("afresh").checked = state.examples.asks_afresh;
  $("note").textContent = state.examples.note;
  for (const { pictures: names } of state.examples.examples) {
    for (const name of names) {
      if (pictures.has(name)) continue;
      const file = await (await request(`/page/examples/${encodeURIComponent(name)}`)).blob();
      pictures.set(name, await createImageBitmap(file));
    }
  }
  $("examples").replaceChildren(...state.examples.examples.map(card));
}

export function showStart(on) {
  $("start").hidden = !on || !(state.examples.note || state.examples.examples.length);
}

/* Questions that fit what is in the tray and, if it is on, before the webcam. */
export function ideasFor(items, live) {
  if (live) return items.length ? SEVERAL : ONE;
  const [first] = items;
  if (!first) return [];
  const example = state.examples.examples[first.example];
  if (example && example.pictures.length === items.length && items.every((each) => each.example === first.example)) {
    return example.questions;
  }
  if (items.length > 1) return SEVERAL;
  return first.kind === "clip" ? CLIP : ONE;
}

function card({ pictures: names, questions }, number) {
  const shown = names.map((name) => {
    const bitmap = pictures.get(name);
    const canvas = element("canvas", { width: bitmap.width, height: bitmap.height });
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    return canvas;
  });
  const look = element("button", { type: "button", className: "look" }, ...shown);
  look.setAttribute("aria-label", names.length > 1 ? `Take ${names.length} pictures` : `Take the picture ${names[0]}`);
  look.addEventListener("click", () => take(number));
  const list = questions.map((words) => {
    const button = element("button", { type: "button", textContent: words });
    button.addEventListener("click", async () => {
      await take(number);
      ask(words);
    });
    return element("li", {}, button);
  });
  return element("li", {}, look, element("ul", {}, ...list));
}

/* Begin with the pictures of an example. */
async function take(number) {
  leaveWebcam();
  removeAll();
  for (const name of state.examples.examples[number].pictures) await addPicture(pictures.get(name), number);
  if (state.items.length > 1) say(`${state.items.length} pictures.`);
  $("question").focus();
}
