// The tray: everything that a question is about is in it and can be seen there.
import { drawPlaces, nameOf } from "./drawing.js";
import { $, element, say, state } from "./state.js";
import { newConversation, refresh } from "./talk.js";

const LONGEST_SIDE = 1600; // what is larger is scaled down before it is sent
const FRAME_SIDE = 640; // of a clip's frames
const MOST_PNG = 1_500_000; // characters; beyond them a picture is sent as JPEG
const MOST_FRAMES = 32;
export const FPS = 2;
let turning = 0; // the timer of a clip on the stage

/* The part of a message that holds an item. */
export function part(item) {
  if (item.kind === "clip") return { type: "video", video: item.frames, fps: FPS };
  return { type: "image_url", image_url: { url: item.frames[0] } };
}

export async function addFiles(files) {
  for (const file of files) {
    try {
      if (state.clips && file.type.startsWith("video/")) await addClip(await framesOfFile(file));
      else await addPicture(await createImageBitmap(file));
    } catch {
      say(file.type.startsWith("video/") && !state.clips
        ? "This model takes pictures, not clips."
        : `${file.name || "This file"} is no picture that the browser can read.`);
    }
  }
}

/* Add what a canvas can draw; example: the number of the example that it belongs to. */
export async function addPicture(source, example = null) {
  const { canvas, width, height } = drawn(source, LONGEST_SIDE);
  let url = canvas.toDataURL("image/png");
  if (url.length > MOST_PNG) url = canvas.toDataURL("image/jpeg", 0.92);
  await add({ kind: "picture", frames: [url], width, height, example, sent: false });
  say(`Picture: ${width} × ${height} pixels.`);
}

export async function addClip(frames) {
  if (!frames.length) return;
  const [{ width, height }] = frames;
  await add({ kind: "clip", frames: frames.map((each) => each.url), width, height, example: null, sent: false });
  say(`Clip: ${frames.length} frames of ${width} × ${height} pixels, ${FPS} per second.`);
}

export function frameOf(source) {
  const { canvas, width, height } = drawn(source, FRAME_SIDE);
  return { url: canvas.toDataURL("image/jpeg", 0.85), width, height };
}

function drawn(source, longest) {
  const [w, h] = [source.videoWidth ?? source.width, source.videoHeight ?? source.height];
  const scale = Math.min(1, longest / Math.max(w, h));
  const [width, height] = [w, h].map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = element("canvas", { width, height });
  canvas.getContext("2d").drawImage(source, 0, 0, width, height);
  return { canvas, width, height };
}

/* Frames of a video file, two per second, or fewer if it is long. */
async function framesOfFile(file) {
  const video = element("video", { muted: true, src: URL.createObjectURL(file) });
  const once = (name) => new Promise((resolve, reject) => {
    video.addEventListener(name, resolve, { once: true });
    video.addEventListener("error", () => reject(video.error), { once: true });
  });
  try {
    await once("loadeddata");
    const length = Number.isFinite(video.duration) ? video.duration : 1;
    const count = Math.min(MOST_FRAMES, Math.max(1, Math.floor(length * FPS)));
    const frames = [];
    for (let number = 0; number < count; number++) {
      const seeked = once("seeked");
      video.currentTime = (number * length) / count;
      await seeked;
      frames.push(frameOf(video));
    }
    return frames;
  } finally {
    URL.revokeObjectURL(video.src);
  }
}

async function add(item) {
  state.items.push(item);
  await show(item);
}

/* Take an item out. What was asked about it is about nothing that can be seen, so the conversation ends with it. */
export function remove(item) {
  state.items = state.items.filter((each) => each !== item);
  const restarted = item.sent;
  if (restarted) newConversation();
  if (state.shown === item) show(state.items.at(-1) ?? null);
  else refreshTray();
  say(restarted ? "The conversation was about this one, so a new one begins." : "");
}

export function removeAll() {
  state.items = [];
  newConversation();
  show(null);
}

/* Put an item on the stage. */
export async function show(item) {
  clearInterval(turning);
  state.shown = item;
  const image = $("picture");
  $("stage").hidden = !item || Boolean(state.camera);
  $("hint").hidden = Boolean(item || state.camera);
  if (item) {
    image.src = item.frames[0];
    image.alt = `${nameOf(item)}, which is asked about`;
    if (item.frames.length > 1) turn(item);
    await image.decode().catch(() => {});
  } else {
    image.removeAttribute("src");
  }
  refreshTray();
}

function turn(item) {
  let number = 0;
  turning = setInterval(() => {
    number = (number + 1) % item.frames.length;
    $("picture").src = item.frames[number];
  }, 1000 / FPS);
}

export function refreshTray() {
  $("tray").replaceChildren(...state.items.map(thumbnail));
  drawPlaces();
  refresh();
}

function thumbnail(item) {
  const name = nameOf(item);
  const picture = element("img", { src: item.frames[0], alt: "" });
  const look = element("button", { type: "button", title: `Show ${name}` }, picture);
  look.setAttribute("aria-label", `Show ${name}`);
  look.setAttribute("aria-pressed", String(item === state.shown));
  look.addEventListener("click", () => show(item));
  const drop = element("button", { type: "button", className: "drop", textContent: "×", title: `Remove ${name}` });
  drop.setAttribute("aria-label", `Remove ${name}`);
  drop.addEventListener("click", () => remove(item));
  return element("li", { className: item.kind }, look, drop);
}
