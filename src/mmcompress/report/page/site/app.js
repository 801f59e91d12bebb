// What a reader does on the page: pick or drop pictures, name labels, search. No framework, no storage, no other host.

import { classified, found, started } from "./models.js";

const at = (id) => document.getElementById(id);
const description = await (await fetch("page.json")).json();
const pictures = []; // what is searched: {name, url, answers}
let ask;
let chosen = null; // the file that is classified
let last = Promise.resolve(); // of what was asked for

const say = (text) => { at("status").textContent = text; };
const percent = (share) => `${(100 * share).toFixed(1)}%`;
const time = (ms) => (ms === null ? "known already" : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`);

/** Runs what a reader asked for, one after another, so that an answer is never that of an earlier question. What goes
 * wrong is said where everything is said. */
function doing(told, work) {
  document.body.setAttribute("aria-busy", "true");
  const mine = last.then(async () => {
    say(told);
    try {
      say(await work());
    } catch (error) {
      say(`That did not work: ${error.message}`);
    }
    if (last === mine) document.body.removeAttribute("aria-busy");
  });
  last = mine;
  return mine;
}

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function table(caption, heads, rows) {
  const made = element("table");
  made.append(element("caption", caption));
  const line = made.createTHead().insertRow();
  for (const head of heads) line.append(element("th", head, { scope: "col" }));
  const body = made.createTBody();
  for (const [name, figure, share] of rows) {
    const row = body.insertRow();
    row.append(element("th", name, { scope: "row" }));
    row.insertCell().append(figure, element("meter", "", { value: share, "aria-hidden": "true" }));
  }
  return made;
}

function choose(file, name = file.name) {
  chosen = file;
  URL.revokeObjectURL(at("preview").src);
  at("preview").src = URL.createObjectURL(file);
  at("preview").alt = name;
  at("preview").hidden = false;
  if (at("labels").value.trim()) classify();
}

const classify = () => doing("Looking…", async () => {
  at("shares").replaceChildren(); // those of another picture would stand there where this one cannot be read
  const labels = [...new Set(at("labels").value.split("\n").map((line) => line.trim()).filter(Boolean))];
  const template = at("template").value.trim() || "{}";
  if (!chosen) return "Choose a picture first.";
  if (labels.length < 2) return "Give at least two labels, one a line: a single one would get 100% of any picture.";
  if (!template.includes("{}")) return "The sentence needs {} where the label goes.";
  const answers = await classified(ask, description.models, chosen, labels, template);
  at("shares").replaceChildren(...answers.map(({ name, shares, image_ms, text_ms }) => {
    const caption = `${name}: image ${time(image_ms)}, a text ${time(text_ms)}`;
    return table(caption, ["Label", "Share"], shares.map(({ label, share }) => [label, percent(share), share]));
  }));
  return answers.map(({ name, shares: [best] }) => `${name}: ${best.label}, ${percent(best.share)}.`).join(" ");
});

/** Embeds a picture and puts it among those that are searched. */
async function add(name, url, file) {
  const answers = await ask("image", file);
  const place = pictures.push({ name, url, answers }) - 1;
  const button = element("button", "", { type: "button", "aria-label": `Classify ${name}` });
  button.append(element("img", "", { src: url, alt: name, width: 64, height: 64 }));
  button.addEventListener("click", () => { choose(file, name); at("classify-heading").focus(); });
  const item = element("li", "", { "data-place": place });
  item.append(button);
  at("pictures").append(item);
}

const addAll = (files) => doing("Reading pictures…", async () => {
  const failed = [];
  for (const file of files) {
    await add(file.name, URL.createObjectURL(file), file).catch((error) => failed.push(`${file.name}: ${error.message}`));
  }
  return [`${pictures.length} pictures to search.`, ...failed].join(" ");
});

const search = () => doing("Searching…", async () => {
  at("matches").replaceChildren();
  const text = at("query").value.trim();
  if (!text) return "Say what to look for.";
  if (!pictures.length) return "Add pictures first.";
  const answers = await found(ask, description.models, text, pictures.map((picture) => picture.answers));
  at("matches").replaceChildren(...answers.map(({ name, matches, text_ms }) => {
    const part = element("div");
    part.append(element("h3", `${name}: text ${time(text_ms)}`));
    const list = element("ol", "", { class: "pictures", "aria-label": `What ${name} finds, best first` });
    for (const { place, cosine } of matches.slice(0, 8)) {
      const item = element("li");
      item.append(element("img", "", { src: pictures[place].url, alt: pictures[place].name, width: 64, height: 64 }));
      item.append(element("span", cosine.toFixed(3)));
      list.append(item);
    }
    part.append(list);
    return part;
  }));
  return answers.map(({ name, matches: [best] }) => `${name} finds ${pictures[best.place].name}.`).join(" ");
});

/** A place that takes dropped files; the input inside of it does the same by keyboard. */
function droppable(zone, input, take) {
  input.addEventListener("change", () => { if (input.files.length) take([...input.files]); input.value = ""; });
  zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    const files = [...event.dataTransfer.files].filter((file) => file.type.startsWith("image/"));
    files.length ? take(files) : say("That is no picture.");
  });
}

function listening() {
  droppable(at("drop-one"), at("one"), ([file]) => choose(file));
  droppable(at("drop-many"), at("many"), addAll);
  at("classify").addEventListener("submit", (event) => { event.preventDefault(); classify(); });
  at("search").addEventListener("submit", (event) => { event.preventDefault(); search(); });
  for (const button of document.querySelectorAll("button.query")) {
    button.addEventListener("click", () => { at("query").value = button.textContent; search(); });
  }
}

await doing("Loading the models…", async () => {
  ask = await started(say);
  await ask("open", description);
  for (const { file, caption } of description.pictures) {
    const picture = await (await fetch(file)).blob();
    await add(caption, URL.createObjectURL(picture), picture);
  }
  listening();
  for (const control of document.querySelectorAll("fieldset")) control.disabled = false;
  return `Ready. In your browser: ${description.models.map(({ name }) => name).join(" and ")}.`;
});
export { ask, description };
