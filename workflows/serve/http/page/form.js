// The form: what the chosen model offers, and the request that the fields ask for.

const ADVANCED = [...document.querySelectorAll("[data-setting]")];
const SLIDERS = ["scale", "steps", "eta", "strength"];
let models = [], leaving = null;

const model = () => models.find((one) => one.id === at("name").value);
const locked = () => at("lock").getAttribute("aria-pressed") === "true";
const lock = (on) => at("lock").setAttribute("aria-pressed", String(on));
const randomSeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0]);
const shown = (value) => (Array.isArray(value) ? value.join(" ") : String(value));

async function connect() {
  try {
    const response = await ask("v1/models", { headers: headers("") });
    if (!response.ok) throw await faultOf(response);
    models = (await response.json()).data;
  } catch (error) {
    at("model").textContent = "not connected";
    say(error.message, true);
    return false;
  }
  if (at("key").value && at("keep-key").checked) sessionStorage.setItem("raverse-key", at("key").value);
  at("key-field").classList.toggle("hidden", !at("key").value);
  at("name").replaceChildren(...models.map((one) => new Option(one.id, one.id)));
  if (at("status").classList.contains("bad")) say("Nothing drawn yet.");
  choose();
  return true;
}

function choose() {
  const one = model();
  if (!one) return;
  at("model").textContent = `${one.id} version ${one.version}, ${one.sizes.join(", ")}`;
  at("guidance").replaceChildren(...one.guidance.map((kind) => new Option(KINDS[kind].title, kind)));
  at("guidance").value = one.guidance.includes(DEFAULT_GUIDANCE) ? DEFAULT_GUIDANCE : one.guidance[0];
  at("class").replaceChildren(new Option("from the prompt", ""), ...one.classes.map((name) => new Option(name, name)));
  at("steps").max = one.max_steps;
  at("steps-slider").max = Math.min(one.max_steps, Math.max(100, 2 * one.default_steps));
  at("steps").value = at("steps-slider").value = one.default_steps;
  at("examples").replaceChildren();
  at("examples").classList.toggle("hidden", !one.example_prompts.length);
  for (const text of one.example_prompts) {
    const button = make("button", text, at("examples"));
    button.type = "button";
    button.addEventListener("click", () => { at("prompt").value = text; count(); at("prompt").focus(); });
  }
  fit();
  count();
}

// Shows the fields that the guidance and the sampler read, with the model's own numbers.
function fit() {
  const one = model(), kind = KINDS[at("guidance").value];
  if (!one || !kind) return;
  const own = one.guidance_settings;
  at("negative").disabled = !kind.takes_negative;
  at("scale").disabled = at("scale-slider").disabled = kind.scale === null;
  at("scale").placeholder = kind.scale === null ? "none" : shown(own[kind.scale]);
  if (kind.scale !== null && at("scale").value === "") at("scale-slider").value = own[kind.scale];
  at("class-field").classList.toggle("hidden", !kind.takes_label);
  at("prompt").disabled = kind.needs === "nothing" || (kind.takes_label && at("class").value !== "");
  at("eta-field").classList.toggle("hidden", !ETA_READERS.includes(at("sampler").value));
  at("compare-field").classList.toggle("hidden", kind.scale === null);
  for (const field of ADVANCED) {
    field.classList.toggle("hidden", !kind.reads.includes(field.dataset.setting));
    const value = own[field.dataset.setting];
    field.querySelectorAll("input").forEach((input, place) => {
      const number = Array.isArray(value) ? value[place] : value;
      input.placeholder = number >= 1e9 ? "no end" : shown(number);
    });
    const open = field.querySelector("option");
    if (open) open.textContent = value ? "on, as the model" : "off, as the model";
  }
  at("advanced").classList.toggle("hidden", ADVANCED.every((field) => field.classList.contains("hidden")));
}

// Words and signs are about as many as tokens; the answer says how many were really cut.
function count() {
  const limit = model()?.max_prompt_tokens, words = at("prompt").value.match(/[\p{L}\p{N}]+|[^\s\p{L}\p{N}]/gu) || [];
  at("tokens").textContent = limit && words.length > limit / 2 ? `about ${words.length} of the ${limit} tokens that the model reads` : "";
}

function advanced() {
  const given = {};
  for (const field of ADVANCED) {
    const inputs = [...field.querySelectorAll("input, select")];
    if (field.classList.contains("hidden") || inputs.every((input) => input.value === "")) continue;
    // An end of an interval that is not given is open.
    const values = inputs.map((input) => (field.dataset.form === "flag" ? input.value === "true" : Number(input.value || input.dataset.open)));
    given[field.dataset.setting] = field.dataset.form === "interval" ? values : values[0];
  }
  return given;
}

// Checks what a request would be refused for in words that do not name the field of the page.
function check() {
  const seed = at("seed").value.trim();
  if (seed && !/^\d+$/.test(seed)) throw new Fault("Give a whole number of at least 0, or leave it empty.", "seed");
  for (const [id, param] of [["number", "n"], ["steps", "num_inference_steps"], ["scale", "guidance_scale"], ["eta", "eta"], ["strength", "strength"]]) {
    const field = at(id);
    if (field.disabled || !field.offsetParent || field.validity.valid) continue;
    const ends = field.max ? `from ${field.min} to ${field.max}` : `of at least ${field.min}`;
    throw new Fault(`Give a number ${ends}.`, param);
  }
  if (!at("number").value) throw new Fault("Give a number from 1 to 10.", "n");
  if (!at("steps").value) throw new Fault("Give the number of steps.", "num_inference_steps");
}

// The fields of a request; the seed is text.
function body(changes = {}) {
  const kind = at("guidance").value;
  const asked = {
    model: at("name").value, guidance: kind, sampler: at("sampler").value, n: Number(at("number").value),
    num_inference_steps: Number(at("steps").value), prompt: at("prompt").disabled ? "" : at("prompt").value, stream: true,
  };
  if (KINDS[kind].takes_label && at("class").value) asked.label = at("class").value;
  if (!at("negative").disabled && at("negative").value.trim()) asked.negative_prompt = at("negative").value;
  if (!at("scale").disabled && at("scale").value !== "") asked.guidance_scale = Number(at("scale").value);
  if (ETA_READERS.includes(asked.sampler) && Number(at("eta").value)) asked.eta = Number(at("eta").value);
  Object.assign(asked, advanced());
  asked.preview_every = Math.max(1, Math.round(asked.num_inference_steps / 12));
  if (asked.preview_every >= asked.num_inference_steps) delete asked.preview_every;
  if (at("seed").value.trim()) asked.seed = at("seed").value.trim();
  return { ...asked, ...changes };
}

// Fills the fields with the settings of a picture.
function fill(settings) {
  if (models.some((one) => one.id === settings.model)) at("name").value = settings.model;
  choose();
  if ([...at("guidance").options].some((option) => option.value === settings.guidance)) at("guidance").value = settings.guidance;
  at("prompt").value = settings.prompt; at("negative").value = settings.negative_prompt || "";
  at("class").value = settings.label || "";
  at("scale").value = KINDS[at("guidance").value].scale === null ? "" : settings.guidance_scale;
  at("sampler").value = settings.sampler; at("eta").value = settings.eta || 0;
  for (const field of ADVANCED) {
    const values = [settings[field.dataset.setting] ?? ""].flat();
    field.querySelectorAll("input, select").forEach((input, place) => { input.value = String(values[place] ?? ""); });
  }
  at("steps").value = settings.num_inference_steps; at("seed").value = settings.seeds[0]; at("number").value = 1;
  lock(true);
  for (const id of SLIDERS) if (at(id).value !== "") at(`${id}-slider`).value = at(id).value;
  fit();
  count();
  (at("prompt").disabled ? at("guidance") : at("prompt")).focus();
}
