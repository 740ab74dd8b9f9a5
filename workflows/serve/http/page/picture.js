// The picture to start from, the mask that is painted over it, and the settings in our own PNG files.

const CHUNK = "raverse";
let start = null;

// The settings that one of our PNG files carries; null if it carries none.
async function settingsIn(file) {
  const bytes = new Uint8Array(await file.arrayBuffer()), view = new DataView(bytes.buffer);
  if (bytes.length < 8 || view.getUint32(0) !== 0x89504e47) return null;
  for (let place = 8; place + 8 < bytes.length;) {
    const size = view.getUint32(place), kind = String.fromCharCode(...bytes.subarray(place + 4, place + 8));
    if (kind === "tEXt" || kind === "iTXt") {
      const text = new TextDecoder(kind === "tEXt" ? "latin1" : "utf-8").decode(bytes.subarray(place + 8, place + 8 + size));
      if (text.startsWith(`${CHUNK}\0`)) {
        try { return readJson(text.slice(text.indexOf("{"))); } catch { return null; }
      }
    }
    place += 12 + size;
  }
  return null;
}

async function startFrom(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    blame(new Fault("This file is no PNG, JPEG or WebP picture.", "image"));
    return;
  }
  const [width, height] = (model()?.sizes[0] || `${bitmap.width}x${bitmap.height}`).split("x").map(Number);
  const picture = new OffscreenCanvas(width, height), pen = picture.getContext("2d");
  // The middle is cut out and scaled to the size that the model makes.
  const side = Math.min(bitmap.width / width, bitmap.height / height);
  pen.drawImage(bitmap, (bitmap.width - side * width) / 2, (bitmap.height - side * height) / 2, side * width, side * height, 0, 0, width, height);
  const mask = new OffscreenCanvas(width, height);
  start = { picture, mask, painted: false, settings: await settingsIn(file) };
  at("canvas").width = width; at("canvas").height = height;
  at("brush").max = Math.max(2, Math.round(width / 4)); at("brush").value = Math.max(1, Math.round(width / 8));
  at("start").open = true;
  at("editing").classList.remove("hidden");
  at("adopt").classList.toggle("hidden", start.settings === null);
  at("draw").textContent = "Draw from it";
  render();
}

function forget() {
  start = null;
  at("file").value = "";
  at("editing").classList.add("hidden");
  at("draw").textContent = "Draw";
  at("file").focus();
}

function render() {
  const pen = at("canvas").getContext("2d");
  pen.clearRect(0, 0, at("canvas").width, at("canvas").height);
  pen.drawImage(start.picture, 0, 0);
  pen.globalAlpha = 0.6;
  pen.drawImage(start.mask, 0, 0);
  pen.globalAlpha = 1;
}

function paint(event) {
  if (!start || !(event.buttons & 1)) return;
  const canvas = at("canvas"), box = canvas.getBoundingClientRect(), pen = start.mask.getContext("2d");
  const x = ((event.clientX - box.left) / box.width) * canvas.width, y = ((event.clientY - box.top) / box.height) * canvas.height;
  pen.fillStyle = "#e0218a";
  pen.beginPath();
  pen.arc(x, y, Number(at("brush").value) / 2, 0, 2 * Math.PI);
  pen.fill();
  if (!start.painted) at("strength").value = at("strength-slider").value = 1;
  start.painted = true;
  render();
}

function unpaint() {
  if (!start) return;
  start.mask.getContext("2d").clearRect(0, 0, start.mask.width, start.mask.height);
  start.painted = false;
  render();
}

// The form of an edit: the text parts, the picture, and the mask, which is transparent where it was painted.
async function editForm(asked) {
  const form = new FormData();
  for (const [name, value] of Object.entries({ ...asked, strength: Number(at("strength").value) })) {
    form.append(name, Array.isArray(value) ? value.join(",") : String(value));
  }
  form.append("image", await start.picture.convertToBlob({ type: "image/png" }), "picture.png");
  if (start.painted) {
    const { width, height } = start.mask, pen = new OffscreenCanvas(width, height).getContext("2d");
    const pixels = start.mask.getContext("2d").getImageData(0, 0, width, height);
    for (let place = 3; place < pixels.data.length; place += 4) pixels.data[place] = pixels.data[place] > 127 ? 0 : 255;
    pen.putImageData(pixels, 0, 0);
    form.append("mask", await pen.canvas.convertToBlob({ type: "image/png" }), "mask.png");
  }
  return form;
}
