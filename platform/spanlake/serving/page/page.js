import { above, codePointStarts, curl, labelsOf, nest, parseLabel } from "./spans.js";

const EXAMPLES = [
  {
    name: "News",
    labels: ["person", "organization", "city", "country"],
    text: "Ursula von der Leyen met the head of the World Health Organization in Geneva on Tuesday. Officials from Kenya, Brazil and the European Union will continue the talks in Nairobi in March.",
  },
  {
    name: "Music",
    labels: ["musician", "song"],
    text: "The Beatles recorded Abbey Road in 1969. George Harrison wrote Something and Here Comes the Sun, while John Lennon and Paul McCartney wrote most of the other songs.",
  },
  {
    name: "Contract",
    labels: ["company", "person"],
    text: "Northwind Traders Ltd and Contoso Bank plc, represented by its director Eleanor Vance, agreed on 3 March 2021 that Northwind pays $2.4 million before 30 June.",
  },
  {
    name: "Nested",
    nested: true,
    labels: ["organization", "location", "person"],
    text: "The University of California, Berkeley School of Law invited Justice Sandra Day O'Connor of the United States Supreme Court to speak at the San Francisco Museum of Modern Art.",
  },
];
const HUES = [200, 32, 130, 280, 350, 170, 55, 235, 95, 315];
const PAUSE_BEFORE_STATUS = 400; // ms; a screen reader should not read every step of the slider

const $ = (id) => document.getElementById(id);
const [text, labelInput, threshold, form] = [$("text"), $("label"), $("threshold"), $("ask")];

const state = {
  labels: [], // {name, description, hue}
  answer: null, // {request, entities, model}: the last answer, at the slider's lowest threshold
  hidden: new Set(), // names of labels that the legend has switched off
  asking: null, // AbortController of the request under way
};

/** An element with properties and children, whose strings are text and never markup. */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function coloured(made, label) {
  made.style.setProperty("--hue", hueOf(label));
  return made;
}

const hues = new Map();
function hueOf(label) {
  if (!hues.has(label)) hues.set(label, HUES[hues.size] ?? Math.round(hues.size * 137.5) % 360);
  return hues.get(label);
}

// --- labels ---------------------------------------------------------------------------------------------------------

function addLabels(typed) {
  for (const label of typed.split(/[,\n]/).map(parseLabel)) {
    if (!label) continue;
    const same = state.labels.find(({ name }) => name === label.name);
    if (same) same.description = label.description;
    else state.labels.push(label);
  }
  showLabels();
}

function removeLabel(index) {
  const [{ name }] = state.labels.splice(index, 1);
  showLabels();
  const buttons = $("labels").querySelectorAll("button");
  (buttons[Math.min(index, buttons.length - 1)] ?? labelInput).focus();
  say(`Removed ${name}`);
}

function showLabels() {
  $("labels").replaceChildren(
    ...state.labels.map(({ name, description }, index) => {
      const remove = element("button", { type: "button", textContent: "×", onclick: () => removeLabel(index) });
      remove.setAttribute("aria-label", `Remove label ${name}`);
      const chip = element("li", { className: "chip" }, element("span", {}, name), remove);
      if (description !== name) remove.before(element("small", {}, description));
      return coloured(chip, name);
    }),
  );
  labelInput.placeholder = state.labels.length ? "add a label" : "such as person, film";
  noteChange();
}

labelInput.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.ctrlKey && !event.metaKey && labelInput.value.trim()) {
    event.preventDefault();
    takeTypedLabels();
  } else if (event.key === "Backspace" && !labelInput.value && state.labels.length) {
    const [{ name }] = state.labels.splice(-1);
    showLabels();
    say(`Removed ${name}`);
  }
});
labelInput.addEventListener("input", () => labelInput.value.includes(",") && takeTypedLabels());
labelInput.addEventListener("change", takeTypedLabels);
$("chips").addEventListener("click", (event) => event.target === event.currentTarget && labelInput.focus());

function takeTypedLabels() {
  const typed = labelInput.value;
  labelInput.value = "";
  addLabels(typed);
}

// --- asking ---------------------------------------------------------------------------------------------------------

function currentQuestion() {
  return {
    texts: [text.value],
    labels: labelsOf(state.labels),
    nested: $("nested").checked,
    multi_label: $("multi-label").checked,
  };
}

async function find() {
  takeTypedLabels();
  const question = currentQuestion();
  if (!text.value.trim()) return complain("Paste a text first, or take an example.", text);
  if (!state.labels.length) return complain("Add at least one label to look for.", labelInput);
  state.asking?.abort();
  const asking = (state.asking = new AbortController());
  complain("");
  $("find").setAttribute("aria-disabled", "true");
  say("Reading…");
  try {
    const answer = await ask({ ...question, threshold: Number(threshold.min) }, asking.signal);
    state.answer = { request: question, entities: answer.results[0], model: answer.model };
    state.hidden.clear();
    show();
  } catch (error) {
    if (asking.signal.aborted) return;
    say("");
    complain(error.message, error.field);
  } finally {
    if (state.asking === asking) {
      state.asking = null;
      $("find").removeAttribute("aria-disabled");
    }
  }
}

/** The server's answer. Throws an Error with a sentence for people, and the field to correct. */
async function ask(request, signal) {
  const headers = { "Content-Type": "application/json" };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const response = await fetch(endpoint(), { method: "POST", headers, body: JSON.stringify(request), signal }).catch((error) => {
    if (signal.aborted) throw error;
    throw new Error("The server cannot be reached; try again in a moment.");
  });
  const answer = await response.json().catch(() => null);
  if (response.ok && answer?.results?.[0]) return answer;
  const said = answer?.error?.message ?? answer?.errors?.[0]?.message ?? `The server answered with status ${response.status}.`;
  if (response.status === 401) {
    const first = $("key-field").hidden;
    $("key-field").hidden = false;
    throw Object.assign(new Error(first ? "This server needs an API key." : said), { field: $("key") });
  }
  const wait = response.headers.get("Retry-After");
  throw new Error(wait ? `${said} Try again in ${wait} s.` : said);
}

/** Where to ask, without the name and key that the page's own address may hold: fetch refuses those. */
function endpoint() {
  const { origin, pathname } = new URL("v1/extract", document.baseURI);
  return origin + pathname;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  find();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find();
});
text.addEventListener("input", noteChange);
for (const id of ["nested", "multi-label"]) $(id).addEventListener("change", () => state.answer && find());

// --- the result -----------------------------------------------------------------------------------------------------

const limit = () => Math.fround(Number(threshold.value)); // scores are float32, and so is the server's threshold
const percent = (score) => score.toFixed(2);

function show(pause = 0) {
  const { request, entities, model } = state.answer;
  const atThreshold = above(entities, limit());
  const shown = atThreshold.filter(({ label }) => !state.hidden.has(label));
  showLegend(request, atThreshold);
  showMarked(request.texts[0], nest(shown));
  $("rows").replaceChildren(
    ...shown.map(({ start, end, text, label, score }) =>
      element("tr", {}, ...[text, label, percent(score), `${start}–${end}`].map((cell) => element("td", {}, cell))),
    ),
  );
  $("details").hidden = !shown.length;
  $("take").hidden = false;
  $("model").textContent = model.name;
  $("model").title = `fingerprint ${model.fingerprint}`;
  const hidden = atThreshold.length - shown.length;
  const count = shown.length === 1 ? "1 entity" : `${shown.length.toLocaleString("en")} entities`;
  say(`${count} above ${percent(Number(threshold.value))}${hidden ? `, ${hidden} hidden` : ""}`, pause);
  noteChange();
}

function showLegend(request, entities) {
  const names = Array.isArray(request.labels) ? request.labels : Object.keys(request.labels);
  const focused = document.activeElement?.closest("#legend button")?.value;
  $("legend").replaceChildren(
    ...names.map((name) => {
      const count = entities.filter(({ label }) => label === name).length;
      const button = element("button", { type: "button", value: name, onclick: () => toggle(name) }, name, element("b", {}, String(count)));
      button.setAttribute("aria-pressed", String(!state.hidden.has(name)));
      return coloured(button, name);
    }),
  );
  if (focused !== undefined) [...$("legend").children].find(({ value }) => value === focused)?.focus();
}

function toggle(name) {
  if (!state.hidden.delete(name)) state.hidden.add(name);
  show();
}

function showMarked(content, nodes) {
  const starts = codePointStarts(content);
  const slice = (from, to) => content.slice(starts[from], starts[to]);
  const between = (children, from, to) => {
    const parts = [];
    for (const node of children) {
      parts.push(slice(from, node.start), marked(node));
      from = node.end;
    }
    return [...parts, slice(from, to)];
  };
  const marked = (node) => {
    const made = element("mark", {}, ...between(node.inside, node.start, node.end));
    for (const { label, score } of node.labels) {
      const comma = element("span", { className: "comma" }, ", ");
      made.append(coloured(element("span", { className: "tag" }, comma, label, element("i", {}, percent(score))), label));
    }
    made.style.setProperty("--inside", node.height);
    return coloured(made, node.labels[0].label);
  };
  $("marked").replaceChildren(...between(nodes, 0, starts.length - 1));
  $("marked").style.setProperty("--depth", Math.max(0, ...nodes.map(({ height }) => height)));
}

let statusTimer;
function say(message, pause = 0) {
  clearTimeout(statusTimer);
  statusTimer = setTimeout(() => ($("status").textContent = message), pause);
}

function complain(message, field) {
  $("problem").textContent = message;
  $("problem").hidden = !message;
  field?.focus();
}

/** Whether the result is still that of what the form asks is seen in the result itself. */
function noteChange() {
  if (!state.answer) return;
  const changed = JSON.stringify(currentQuestion()) !== JSON.stringify(state.answer.request);
  if (changed && !$("result").classList.contains("earlier")) say("Of the text and labels before your changes");
  $("result").classList.toggle("earlier", changed);
}

threshold.addEventListener("input", () => {
  showThreshold();
  if (!state.answer) return;
  show(PAUSE_BEFORE_STATUS);
});

function showThreshold() {
  $("threshold-value").textContent = percent(Number(threshold.value));
}

// --- taking it away -------------------------------------------------------------------------------------------------

async function copy(button, content) {
  const name = button.textContent;
  const done = await toClipboard(content);
  button.textContent = done ? "Copied" : "Not copied";
  say(done ? `${name.replace("Copy ", "")} copied` : "The browser does not allow copying");
  setTimeout(() => (button.textContent = name), 1500);
}

/** navigator.clipboard is there only on https and localhost. */
async function toClipboard(content) {
  try {
    await navigator.clipboard.writeText(content);
    return true;
  } catch {
    const area = element("textarea", { value: content, className: "comma" });
    document.body.append(area);
    const focused = document.activeElement;
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return done;
  }
}

$("copy-json").addEventListener("click", ({ currentTarget }) => {
  const { request, entities, model } = state.answer;
  const shown = above(entities, limit()).filter(({ label }) => !state.hidden.has(label));
  copy(currentTarget, JSON.stringify({ model, text: request.texts[0], threshold: Number(threshold.value), entities: shown }, null, 2));
});
$("copy-curl").addEventListener("click", ({ currentTarget }) => {
  const request = { ...state.answer.request, threshold: Number(threshold.value) };
  copy(currentTarget, curl(endpoint(), request, Boolean($("key").value)));
});

$("examples").append(
  ...EXAMPLES.map(({ name, text: content, labels, nested = false }) => {
    const take = () => {
      text.value = content;
      state.labels = [];
      addLabels(labels.join(","));
      $("nested").checked = nested;
      find();
    };
    return element("button", { type: "button", textContent: name, onclick: take });
  }),
);
addLabels("person, organization, location");
showThreshold();
