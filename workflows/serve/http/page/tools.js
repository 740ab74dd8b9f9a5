// Elements, messages, faults at their fields, and the answers of the service.

const at = (id) => document.getElementById(id);

const make = (tag, text, parent) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
};

function say(text, bad = false) {
  at("status").textContent = text;
  at("status").classList.toggle("bad", bad);
}

class Fault extends Error {
  constructor(message, param = null, wait = null) {
    super(message);
    this.param = param;
    this.wait = wait;
  }
}

// The field of the form for each field of a request.
const FIELD_OF = {
  prompt: "prompt", negative_prompt: "negative", model: "name", n: "number", guidance: "guidance", guidance_scale: "scale",
  label: "class", sampler: "sampler", num_inference_steps: "steps", eta: "eta", seed: "seed", seeds: "seed",
  strength: "strength", image: "file", mask: "file", scales: "scales",
};

function fieldOf(param) {
  return at(FIELD_OF[param] || "") || document.querySelector(`[data-setting="${CSS.escape(param)}"] :is(input, select)`);
}

function forgive() {
  for (const note of document.querySelectorAll(".fault")) note.remove();
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-errormessage");
  }
}

// Puts the message of a fault below its field, and goes there.
function blame(error) {
  const field = error.param ? fieldOf(error.param) : null;
  if (!field) return false;
  const fold = field.closest("details");
  if (fold) fold.open = true;
  const note = make("p", error.message, null);
  note.className = "fault";
  note.role = "alert";
  note.id = `${error.param}-fault`;
  (field.closest("label, .label, fieldset") || field).after(note);
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-errormessage", note.id);
  field.focus();
  return true;
}

function headers(kind = "application/json") {
  const found = kind ? { "Content-Type": kind } : {};
  if (at("key").value) found.Authorization = `Bearer ${at("key").value}`;
  return found;
}

async function ask(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault("The service does not answer: is it still running?");
  }
}

async function faultOf(response) {
  let message = `the service answered ${response.status}`, param = null;
  try { ({ message, param } = (await response.json()).error); } catch { /* no JSON: the status says it */ }
  if (response.status === 401) {
    at("key-field").classList.remove("hidden");
    at("key").focus();
  }
  const wait = Number(response.headers.get("Retry-After")) || null;
  return new Fault(message, response.status === 401 ? null : param, response.status === 429 ? wait : null);
}

// Seeds of 64 bits do not fit into JavaScript's numbers, so they are text in here.
const readJson = (text) => JSON.parse(text.replace(/"seed":\s*(\d+)/g, '"seed":"$1"').replace(/"seeds":\s*\[\s*(\d+)\s*\]/g, '"seeds":["$1"]'));
const writeJson = (value, space) => JSON.stringify(value, null, space).replace(/"seeds":(\s*)\[\s*"(\d+)"\s*\]/g, '"seeds":$1[$2]').replace(/"seed":(\s*)"(\d+)"/g, '"seed":$1$2');

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const data = rest.slice(0, end).split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      rest = rest.slice(end + 2);
      if (data) yield readJson(data);
    }
  }
}

const pause = (seconds, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, 1000 * seconds);
  signal.addEventListener("abort", () => { clearTimeout(timer); reject(new DOMException("stopped", "AbortError")); });
});
