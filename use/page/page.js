"use strict";
// Sends a drawn, dropped, pasted or chosen picture to POST /predict and POST /mistakes, and shows the answers.

const TOP = 5; // classes
const MISTAKES = 6; // training pictures
const BOX = 20 / 28; // share of the picture that MNIST's digits fill
const get = id => document.getElementById(id);
const canvas = get("canvas"), pen = canvas.getContext("2d", { willReadFrequently: true });
// With a token, the address ends in #token=…, which browsers do not send to any server.
const token = new URLSearchParams(location.hash.slice(1)).get("token");
const headers = token ? { Authorization: `Bearer ${token}` } : {};

let model = null, ground = "#000", ink = "#fff";
let running = null; // the requests for the picture that is shown
let last = null; // returns the shown picture, to send it again

async function start() {
  const answer = await fetch("/model", { headers });
  if (!answer.ok) throw new Error(await reason(answer));
  model = await answer.json();
  const [channels, height, width] = model.image_shape;
  const kind = channels === 1 ? "grey" : "colour";
  get("about").textContent =
    `${model.classes.length ? `${model.classes.length} classes` : "a number"}, ${kind} pictures of ${width} x ${height} pixels, model ${model.sha256.slice(0, 12)}`;
  if (!model.light_on_dark) [ground, ink] = [ink, ground];
  get("drawing").hidden = !model.drawable;
  clear();
}

async function reason(answer) {
  const text = (await answer.json().catch(() => ({}))).error ?? answer.statusText;
  return answer.status === 401 ? "This server needs a token: add #token=… to the end of its address" : text;
}

function clear() {
  running?.abort();
  pen.fillStyle = ground;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  show("Nothing yet.");
  last = null;
  get("file").value = ""; // else the browser would ignore the same file if it is chosen again
}

// --- drawing

let point = null; // the last position of the pen while it is down

function place(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / (box.width - 2); // without the border
  return [(event.clientX - box.left - 1) * scale, (event.clientY - box.top - 1) * scale];
}

function stroke(event) {
  const next = place(event);
  pen.strokeStyle = ink;
  pen.lineWidth = 22;
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo(...point);
  pen.lineTo(...next);
  pen.stroke();
  point = next;
}

canvas.addEventListener("pointerdown", event => {
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  point = place(event);
  stroke(event); // a dot
});
canvas.addEventListener("pointermove", event => {
  if (point) for (const part of event.getCoalescedEvents?.() ?? [event]) stroke(part);
});
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, () => {
    if (point) ask(drawn);
    point = null;
  });
}
get("clear").addEventListener("click", clear);
get("centre").addEventListener("change", () => last && ask(last));
get("invert").addEventListener("change", () => last && ask(last));

// The drawing as a file, scaled to the box and centred by its mass, like MNIST's digits.
function drawn() {
  const picture = document.createElement("canvas");
  picture.width = picture.height = canvas.width;
  const paint = picture.getContext("2d");
  paint.fillStyle = ground;
  paint.fillRect(0, 0, picture.width, picture.height);
  const box = get("centre").checked ? inked() : null;
  if (box) {
    const scale = BOX * canvas.width / Math.max(box.right - box.left, box.bottom - box.top);
    paint.imageSmoothingQuality = "high";
    paint.translate(picture.width / 2, picture.height / 2);
    paint.scale(scale, scale);
    paint.translate(-box.x, -box.y);
  }
  paint.drawImage(canvas, 0, 0);
  return new Promise(done => picture.toBlob(blob => done(new File([blob], "drawing.png")), "image/png"));
}

// The bounding box of the ink, and its centre of mass; null for an empty canvas.
function inked() {
  const { data, width, height } = pen.getImageData(0, 0, canvas.width, canvas.height);
  const box = { left: width, right: 0, top: height, bottom: 0, x: 0, y: 0 };
  let mass = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const grey = data[4 * (y * width + x)], weight = model.light_on_dark ? grey : 255 - grey;
      if (!weight) continue;
      mass += weight;
      box.x += weight * (x + 0.5);
      box.y += weight * (y + 0.5);
      box.left = Math.min(box.left, x);
      box.right = Math.max(box.right, x + 1);
      box.top = Math.min(box.top, y);
      box.bottom = Math.max(box.bottom, y + 1);
    }
  }
  return mass ? { ...box, x: box.x / mass, y: box.y / mass } : null;
}

// --- files

function give(files) {
  const picture = [...files].find(file => file.type.startsWith("image/")) ?? files[0];
  if (picture) ask(() => picture);
}

get("file").addEventListener("change", event => give(event.target.files));
addEventListener("paste", event => give(event.clipboardData.files));
addEventListener("dragover", event => {
  event.preventDefault();
  get("drop").classList.add("over");
});
addEventListener("dragleave", () => get("drop").classList.remove("over"));
addEventListener("drop", event => {
  event.preventDefault();
  get("drop").classList.remove("over");
  give(event.dataTransfer.files);
});

// --- requests

async function ask(make) {
  last = make;
  running?.abort();
  const mine = running = new AbortController();
  const post = async (path, body) => {
    const answer = await fetch(path, { method: "POST", body, headers, signal: mine.signal });
    if (!answer.ok) throw new Error(await reason(answer));
    return answer.json();
  };
  try {
    const picture = await make(), form = new FormData(), invert = make === drawn ? "no" : get("invert").value;
    form.append("picture", picture);
    const [prediction] = (await post(`/predict?${new URLSearchParams({ top: TOP, seen: true, invert })}`, form)).predictions;
    if (prediction.error) throw new Error(`This picture cannot be read: ${prediction.error}`);
    show("", prediction);
    if (!model.classes.length) return; // no picture counts as misclassified
    for (let searching = true; searching && !mine.signal.aborted;) {
      const search = post(`/mistakes?${new URLSearchParams({ count: MISTAKES, invert })}`, picture);
      const found = await search.catch(error => ({ unavailable: error.message }));
      showMistakes(found, mine.signal);
      searching = found.searching;
    }
  } catch (error) {
    if (!mine.signal.aborted) show(error instanceof TypeError ? "The server does not answer." : error.message, null, true);
  }
}

function show(text, prediction = null, bad = false) {
  get("status").textContent = prediction ? `Predicted: ${prediction.value ?? prediction.classes[0].name}` : text;
  get("status").classList.toggle("bad", bad);
  get("classes").replaceChildren(...(prediction?.classes ?? []).map(row));
  get("seen").hidden = !prediction;
  get("mistakes").hidden = !prediction || !model.classes.length;
  get("mistakes-list").replaceChildren();
  get("mistakes-note").textContent = "Searching the training pictures …";
  if (!prediction) return;
  get("picture").src = prediction.seen;
  const left = prediction.looks_inverted && !prediction.inverted;
  get("remark").textContent =
    prediction.inverted ? ", light and dark swapped" : left ? "; light and dark look swapped" : "";
}

function row({ name, probability }) {
  const item = document.createElement("li"), label = document.createElement("span"), share = document.createElement("span");
  const bar = document.createElement("progress");
  label.className = "name";
  label.textContent = name;
  share.textContent = `${(100 * probability).toFixed(2)} %`;
  bar.value = probability;
  bar.setAttribute("aria-hidden", "true");
  item.append(label, share, bar);
  return item;
}

function showMistakes({ training_images: total, searched, searching, misclassified, mistakes, unavailable }, signal) {
  if (signal.aborted) return;
  get("mistakes-list").replaceChildren(...(mistakes ?? []).map(mistake));
  if (unavailable) {
    get("mistakes-note").textContent = `Not available: ${unavailable}`;
    return;
  }
  const [all, some, wrong] = [total, searched, misclassified].map(count => count.toLocaleString("en"));
  const found = searching
    ? `The search of the ${all} training pictures is running. So far, the network misreads ${wrong} of ${some}.`
    : searched < total
      ? `The network misreads ${wrong} of ${some} training pictures; not all ${all} were searched.`
      : `The network misreads ${wrong} of the ${all} training pictures.`;
  get("mistakes-note").textContent = mistakes.length ? `${found} The most similar to yours:` : found;
}

function mistake({ image, label, prediction, similarity }) {
  const item = document.createElement("li"), picture = document.createElement("img"), text = document.createElement("p");
  picture.src = image;
  picture.alt = `A training picture of ${label}`;
  const lines = [`true: ${label}`, `predicted: ${prediction}`, `similarity: ${similarity.toFixed(2)}`];
  text.append(...lines.flatMap(line => [line, document.createElement("br")]).slice(0, -1));
  item.append(picture, text);
  return item;
}

start().catch(error => show(error.message, null, true));
