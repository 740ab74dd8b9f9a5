// The pictures: the chosen one with its settings, and the history, which lasts over a reload.

const KEPT = 120;
let kept = [], chosen = null;

const urlOf = (entry) => `data:image/png;base64,${entry.b64_json}`;
const nameOf = (settings) => settings.prompt || settings.label || "unconditional";
const captionOf = (entry) => {
  const settings = entry.settings, scaled = settings.guidance === "none" || settings.guidance === "direct" ? "" : ` ${settings.guidance_scale}`;
  return `${nameOf(settings)}, ${settings.guidance.replaceAll("_", "-")}${scaled}, seed ${settings.seeds[0]}, v${settings.version}`;
};

// IndexedDB with two shelves: the history, and the examples of each model version.
const shelf = new Promise((resolve) => {
  const opening = indexedDB.open("raverse", 1);
  opening.onupgradeneeded = () => {
    opening.result.createObjectStore("history", { autoIncrement: true });
    opening.result.createObjectStore("examples");
  };
  opening.onsuccess = () => resolve(opening.result);
  // A browser that keeps nothing, as in some private windows, has a page without memory.
  opening.onerror = () => resolve(null);
});

async function stored(name, mode, work) {
  const database = await shelf;
  if (!database) return undefined;
  return new Promise((resolve) => {
    const request = work(database.transaction(name, mode).objectStore(name));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(undefined);
  });
}

function button(entry, caption) {
  const item = document.createElement("li"), found = make("button", undefined, item);
  found.type = "button";
  found.className = "picture";
  found.setAttribute("aria-pressed", "false");
  const figure = make("figure", undefined, found), image = make("img", undefined, figure);
  image.src = urlOf(entry);
  image.alt = "";
  make("figcaption", caption, figure);
  return [item, found];
}

function remember(entry) {
  const [item, found] = button(entry, captionOf(entry));
  entry.marks = [found];
  found.addEventListener("click", () => (chosen === entry ? enlarge(entry) : tell(entry)));
  at("history").prepend(item);
  kept.unshift(entry);
  while (kept.length > KEPT) {
    const oldest = kept.pop();
    at("history").lastElementChild.remove();
    if (oldest.key !== undefined) stored("history", "readwrite", (place) => place.delete(oldest.key));
  }
}

async function keep(event) {
  const entry = { b64_json: event.b64_json, settings: event.settings };
  remember(entry);
  tell(entry);
  stored("history", "readwrite", (place) => place.add({ b64_json: entry.b64_json, settings: entry.settings })).then((key) => { entry.key = key; });
  return entry;
}

async function recall() {
  const keys = (await stored("history", "readonly", (place) => place.getAllKeys())) || [];
  const entries = (await stored("history", "readonly", (place) => place.getAll())) || [];
  entries.forEach((entry, place) => remember({ ...entry, key: keys[place] }));
}

async function clearHistory() {
  await stored("history", "readwrite", (place) => place.clear());
  kept = [];
  at("history").replaceChildren();
  at("prompt").disabled ? at("draw").focus() : at("prompt").focus();
}

function tell(entry) {
  for (const other of document.querySelectorAll('.picture[aria-pressed="true"]')) other.setAttribute("aria-pressed", "false");
  for (const mark of entry.marks) mark.setAttribute("aria-pressed", "true");
  chosen = entry;
  at("gallery-field").classList.add("hidden");
  at("chosen").classList.remove("hidden");
  at("save").href = urlOf(entry);
  at("save").download = `${entry.settings.model}-${entry.settings.seeds[0]}.png`;
  const list = at("details");
  list.replaceChildren();
  for (const [name, value] of Object.entries(entry.settings)) {
    if (value === "" || (Array.isArray(value) && !value.length)) continue;
    make("dt", name.replaceAll("_", " "), list);
    make("dd", Array.isArray(value) ? value.join(", ") : String(value), list);
  }
}

function enlarge(entry) {
  at("large-picture").src = urlOf(entry);
  at("large-picture").alt = nameOf(entry.settings);
  at("large-caption").textContent = captionOf(entry);
  at("large").showModal();
}

// The body of a request for exactly this picture.
const again = (settings) => {
  const { without_effect: _, inpainted: __, prompt_tokens_cut: ___, negative_prompt_tokens_cut: ____, classifier_target: _____, ...fields } = settings;
  return fields;
};
const route = (settings) => new URL(settings.strength === undefined ? "v1/images/generations" : "v1/images/edits", document.baseURI).href;
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const keyed = () => Boolean(at("key").value);

function curlOf(settings) {
  const key = keyed() ? ' -H "Authorization: Bearer $RAVERSE_API_KEY"' : "", fields = again(settings);
  const save = " | grep -oE '[A-Za-z0-9+/=]{90,}' | base64 -d > picture.png";
  if (settings.strength === undefined) {
    return `curl -s ${route(settings)}${key} -H 'Content-Type: application/json' -d ${quoted(writeJson(fields))}${save}`;
  }
  const parts = Object.entries(fields).map(([name, value]) => `-F ${quoted(`${name}=${value}`)}`);
  const mask = settings.inpainted ? " -F mask=@mask.png" : "";
  return `curl -s ${route(settings)}${key} ${parts.join(" ")} -F image=@start.png${mask}${save}`;
}

function pythonOf(settings) {
  const fields = again(settings), edit = settings.strength !== undefined;
  const extra = Object.fromEntries(Object.entries(fields).filter(([name]) => !["model", "prompt", "size"].includes(name)));
  const literal = writeJson(extra, 4).replace(/\btrue\b/g, "True").replace(/\bfalse\b/g, "False");
  const files = edit ? `\n    image=open("start.png", "rb"),${settings.inpainted ? '\n    mask=open("mask.png", "rb"),' : ""}` : "";
  return `import base64
import os

from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(new URL("v1", document.baseURI).href)}, api_key=os.environ.get("RAVERSE_API_KEY", "none"))
answer = client.images.${edit ? "edit" : "generate"}(
    model=${JSON.stringify(fields.model)},
    prompt=${JSON.stringify(fields.prompt)},
    size=${JSON.stringify(fields.size)},${files}
    extra_body=${literal.replaceAll("\n", "\n    ")},
)
open("picture.png", "wb").write(base64.b64decode(answer.data[0].b64_json))
`;
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Only https and this machine have a clipboard; elsewhere the old way works.
    const area = make("textarea", text, document.body);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`${what} is in the clipboard.`);
}
