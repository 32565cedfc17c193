// What the page knows, and the words of its status line.

export const $ = (id) => document.getElementById(id);

export const state = {
  model: "",
  clips: false, // the model takes them
  examples: { note: "", asks_afresh: false, pictures_only: false, examples: [] },
  messages: [], // the conversation, as the protocol has it
  items: [], // the tray: pictures and clips, those of the conversation and those that go with the next question
  shown: null, // the item on the stage
  asked: [], // the items of the last message that had some; an answer's places count them
  places: [], // of the last answer
  running: null, // the AbortController of an answer on its way
  camera: null, // the webcam's stream
};

export function say(text) {
  $("status").textContent = text;
}

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
