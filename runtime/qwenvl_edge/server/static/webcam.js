// The webcam: live on the stage until a picture or a clip is taken of it, a question is asked, or it is left.
import { addClip, addPicture, FPS, frameOf, show } from "./pictures.js";
import { $, say, state } from "./state.js";
import { refresh } from "./talk.js";

const MOST_SECONDS = 8;
let recording = null; // {frames, timer}

export async function openWebcam() {
  if (state.camera) return;
  try {
    state.camera = await navigator.mediaDevices.getUserMedia({ video: true });
  } catch {
    say("The webcam cannot be used: there is none, or the browser was not allowed to, which it is on localhost and over https only.");
    return;
  }
  const video = $("video");
  video.srcObject = state.camera;
  await video.play();
  setLive(true);
  say("Live. A question is about the moment at which you ask it.");
  $("take").focus();
}

export function leaveWebcam() {
  if (!state.camera) return;
  clearInterval(recording?.timer);
  recording = null;
  state.camera.getTracks().forEach((track) => track.stop());
  state.camera = null;
  $("video").srcObject = null;
  setLive(false);
  say("");
  $("webcam").focus();
}

function setLive(on) {
  $("video").hidden = $("live").hidden = !on;
  $("sources").hidden = on;
  $("record").textContent = "Record clip";
  show(state.shown);
}

/* Take what the webcam shows now, and leave it. */
export async function takePicture() {
  if (recording) return stopRecording();
  const video = $("video");
  const bitmap = await createImageBitmap(video);
  leaveWebcam();
  return addPicture(bitmap);
}

/* A first press begins, a second ends; so does MOST_SECONDS. */
export function toggleRecording() {
  if (recording) return stopRecording();
  recording = { frames: [frameOf($("video"))], timer: 0 };
  const left = () => MOST_SECONDS - recording.frames.length / FPS;
  recording.timer = setInterval(() => {
    recording.frames.push(frameOf($("video")));
    $("record").textContent = `End clip (${Math.ceil(left())} s left)`;
    if (left() <= 0) stopRecording();
  }, 1000 / FPS);
  $("record").textContent = `End clip (${MOST_SECONDS} s left)`;
  refresh();
}

async function stopRecording() {
  const { frames } = recording;
  leaveWebcam();
  await addClip(frames);
}
