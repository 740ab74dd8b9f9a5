// Requests, and their pictures as they come.

const AT_ONCE = 4;
const LONGEST_WAIT = 120;

function frame(caption) {
  const item = make("li", undefined, at("now"));
  const figure = make("figure", undefined, item);
  make("div", undefined, figure).className = "empty";
  make("figcaption", caption, figure);
  return figure;
}

function show(figure, event, caption) {
  let image = figure.querySelector("img");
  if (!image) {
    image = document.createElement("img");
    figure.querySelector(".empty").replaceWith(image);
  }
  image.src = urlOf(event);
  image.alt = caption;
  figure.querySelector("figcaption").textContent = caption;
}

// A finished picture is a button: a click chooses it, another one enlarges it.
function finish(figure, entry) {
  const found = document.createElement("button");
  found.type = "button";
  found.className = "picture";
  found.setAttribute("aria-pressed", "true");
  figure.replaceWith(found);
  found.append(figure);
  figure.querySelector("img").alt = "";
  entry.marks.push(found);
  found.addEventListener("click", () => (chosen === entry ? enlarge(entry) : tell(entry)));
}

async function send(asked, signal) {
  if (!start) {
    return ask("v1/images/generations", { method: "POST", headers: headers(), body: writeJson(asked), signal });
  }
  return ask("v1/images/edits", { method: "POST", headers: headers(""), body: await editForm(asked), signal });
}

// Sends a request, waits for room where there is none, and shows what comes.
async function request(asked, place, caption, signal, moved, patient = false) {
  let response = await send(asked, signal);
  for (let waited = 0; patient && response.status === 429 && waited < LONGEST_WAIT;) {
    const wait = Number(response.headers.get("Retry-After")) || 1;
    await pause(wait, signal);
    waited += wait;
    response = await send(asked, signal);
  }
  if (!response.ok) throw await faultOf(response);
  const frames = new Map(), steps = asked.num_inference_steps;
  let ended = 0;
  for await (const event of events(response)) {
    if (event.error) throw new Fault(event.error.message, event.error.param);
    if (!frames.has(event.seed)) frames.set(event.seed, place(frames.size));
    const finished = event.type.endsWith("completed"), figure = frames.get(event.seed);
    show(figure, event, finished ? caption(event) : `step ${event.step} of ${steps}`);
    moved(event.step / steps);
    if (finished) {
      ended += 1;
      finish(figure, await keep(event));
      warn(event.settings);
    }
  }
  if (!ended) throw new Fault("The answer broke off: try again.");
}

// Says at the prompt what of it the model did not read.
function warn(settings) {
  const cut = settings.prompt_tokens_cut;
  if (cut) at("tokens").textContent = `the model did not read the last ${cut} tokens: it reads ${model()?.max_prompt_tokens}`;
}

const enable = (name, on) => at(name).setAttribute("aria-disabled", String(!on));

async function run(work) {
  if (leaving) return;
  forgive();
  leaving = new AbortController();
  enable("draw", false); enable("compare", false); enable("stop", true);
  try {
    // With a key that was just typed, the first press connects and draws.
    if (!models.length && !(await connect())) return;
    check();
    if (!locked() || !at("seed").value.trim()) at("seed").value = randomSeed();
    at("now").replaceChildren(); at("chosen").classList.add("hidden"); at("gallery-field").classList.add("hidden");
    at("progress").value = 0;
    say("Drawing.");
    if (matchMedia("(max-width: 56rem)").matches) at("pictures").scrollIntoView({ block: "start" });
    const started = performance.now();
    await work(leaving.signal);
    say(`Done in ${((performance.now() - started) / 1000).toFixed(2)} s.`);
  } catch (error) {
    const stopped = error.name === "AbortError";
    say(stopped ? "Stopped." : error.message, !stopped);
    if (!stopped) blame(error);
  } finally {
    for (const empty of document.querySelectorAll("#now .empty")) empty.closest("li").remove();
    leaving = null;
    enable("draw", true); enable("compare", true); enable("stop", false);
  }
}

const draw = () => run((signal) => {
  const frames = Array.from({ length: Number(at("number").value) }, () => frame("waiting"));
  return request(body(), (index) => frames[index], (event) => `seed ${event.seed}`, signal, (share) => { at("progress").value = share; });
});

const compare = () => run(async (signal) => {
  const words = at("scales").value.split(/[\s,;]+/).filter((word) => word !== ""), scales = words.map(Number);
  if (!scales.length || scales.some((scale) => !(scale >= 0))) throw new Fault("Give numbers of at least 0.", "scales");
  // One seed for all, or the pictures would differ by more than their scale.
  const shares = scales.map(() => 0), frames = scales.map((scale) => frame(`scale ${scale}`)), waiting = [...scales.keys()];
  const one = async (index) => {
    const moved = (share) => { shares[index] = share; at("progress").value = shares.reduce((a, b) => a + b) / shares.length; };
    const asked = body({ guidance_scale: scales[index], n: 1 });
    await request(asked, () => frames[index], () => `scale ${scales[index]}`, signal, moved, true);
  };
  // A few at once; as one ends, the next takes its place.
  const worker = async () => { while (waiting.length) await one(waiting.shift()); };
  const failed = (await Promise.allSettled(Array.from({ length: AT_ONCE }, worker))).find((part) => part.status === "rejected");
  if (failed) throw failed.reason;
});

// An empty page shows what the model makes of its example prompts; each version draws them once per browser.
async function showExamples() {
  const own = model();
  if (!own || kept.length || leaving) return;
  const key = `${own.id}/${own.version}`;
  let entries = await stored("examples", "readonly", (place) => place.get(key));
  if (!entries) {
    const prompts = own.example_prompts.slice(0, 6), few = Math.min(20, own.max_steps);
    const changes = { model: own.id, num_inference_steps: few, seed: 7 };
    const bodies = prompts.length ? prompts.map((prompt) => ({ ...changes, prompt })) : [];
    entries = [];
    for (const asked of bodies) {
      if (leaving || kept.length) return;
      const response = await fetch("v1/images/generations", { method: "POST", headers: headers(), body: JSON.stringify(asked) }).catch(() => null);
      // A busy service has better things to do.
      if (!response || !response.ok) return;
      const answer = readJson(await response.text());
      entries.push({ b64_json: answer.data[0].b64_json, settings: answer.settings });
    }
    if (!entries.length) return;
    stored("examples", "readwrite", (place) => place.put(entries, key));
  }
  if (kept.length || leaving) return;
  at("gallery").replaceChildren();
  for (const entry of entries) {
    const [item, found] = button(entry, nameOf(entry.settings));
    found.removeAttribute("aria-pressed");
    found.addEventListener("click", () => { fill(entry.settings); lock(false); });
    at("gallery").append(item);
  }
  at("gallery-field").classList.remove("hidden");
}
