// Boxes, quadrilaterals and points over the picture on the stage, and their list below it.
import { $, element, state } from "./state.js";

const COLOURS = ["#e6194b", "#1f6feb", "#2a9d3a", "#d98200", "#911eb4", "#0aa1a1"];

/* The places of an answer's field `qwenvl`, each as {label, image, points, kind}. */
export function placesOf(reply) {
  const box = ({ x1, y1, x2, y2 }) => [[x1, y1], [x2, y1], [x2, y2], [x1, y2]];
  return [
    ...(reply.boxes ?? []).map((each) => ({ ...each, kind: "box", points: box(each) })),
    ...(reply.quads ?? []).map((each) => ({ ...each, kind: "quad" })),
    ...(reply.points ?? []).map((each) => ({ ...each, kind: "point", points: [[each.x, each.y]] })),
  ];
}

/* Draw those places that lie in the item on the stage; list all. */
export function drawPlaces() {
  const canvas = $("places");
  canvas.width = state.shown?.width ?? 1;
  canvas.height = state.shown?.height ?? 1;
  const context = canvas.getContext("2d");
  const unit = Math.max(canvas.width, canvas.height) / 300;
  context.lineWidth = 1.5 * unit;
  context.font = `${Math.round(unit * 9)}px system-ui, sans-serif`;
  $("found").replaceChildren();
  state.places.forEach((place, number) => {
    const colour = COLOURS[number % COLOURS.length];
    const item = state.asked[place.image];
    if (item === state.shown) drawPlace(context, place, colour, unit);
    const numbers = place.kind === "box" ? [place.points[0], place.points[2]] : place.points;
    const where = state.items.length > 1 && item ? ` in ${nameOf(item)}` : "";
    const words = `${place.label || place.kind} (${numbers.flat().map(Math.round).join(", ")})${where}`;
    const entry = element("li", { textContent: words });
    entry.style.borderColor = colour;
    $("found").append(entry);
  });
}

export function nameOf(item) {
  return `${item.kind} ${state.items.indexOf(item) + 1}`;
}

function drawPlace(context, place, colour, unit) {
  const [first, ...others] = place.points;
  context.strokeStyle = context.fillStyle = colour;
  context.beginPath();
  if (place.kind === "point") {
    context.arc(...first, 3 * unit, 0, 2 * Math.PI);
    context.fill();
  } else {
    context.moveTo(...first);
    others.forEach((point) => context.lineTo(...point));
    context.closePath();
    context.stroke();
  }
  const left = Math.min(...place.points.map(([x]) => x));
  const top = Math.min(...place.points.map(([, y]) => y));
  if (place.label) drawLabel(context, place.label, left, top, colour, unit);
}

function drawLabel(context, label, x, y, colour, unit) {
  const height = unit * 12;
  const width = context.measureText(label).width + 6 * unit;
  const top = y >= height ? y - height : y;
  const left = Math.max(0, Math.min(x, context.canvas.width - width));
  context.fillStyle = colour;
  context.fillRect(left, top, width, height);
  context.fillStyle = "#fff";
  context.fillText(label, left + 3 * unit, top + 9 * unit);
}
