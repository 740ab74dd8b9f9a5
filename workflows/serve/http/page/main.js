// What happens when.

at("form").addEventListener("submit", (event) => { event.preventDefault(); draw(); });
at("compare").addEventListener("click", compare);
at("stop").addEventListener("click", () => leaving && leaving.abort());
at("key").addEventListener("change", () => { if (!models.length) connect(); });
at("keep-key").addEventListener("change", () => { if (!at("keep-key").checked) sessionStorage.removeItem("raverse-key"); });
at("name").addEventListener("change", choose);
at("prompt").addEventListener("input", count);
for (const id of ["guidance", "class", "sampler"]) at(id).addEventListener("change", fit);
at("guidance").addEventListener("change", () => { at("scale").value = ""; fit(); });
for (const id of SLIDERS) {
  const slider = at(`${id}-slider`);
  slider.addEventListener("input", () => { at(id).value = slider.value; });
  at(id).addEventListener("input", () => { if (at(id).value !== "") slider.value = at(id).value; });
}
at("die").addEventListener("click", () => { at("seed").value = randomSeed(); lock(true); });
at("lock").addEventListener("click", () => {
  if (!locked() && !at("seed").value) at("seed").value = randomSeed();
  lock(!locked());
});
// Who types a seed wants to keep it.
at("seed").addEventListener("change", () => lock(at("seed").value.trim() !== ""));

at("file").addEventListener("change", () => at("file").files.length && startFrom(at("file").files[0]));
for (const kind of ["pointerdown", "pointermove"]) at("canvas").addEventListener(kind, paint);
at("unpaint").addEventListener("click", unpaint);
at("forget").addEventListener("click", forget);
at("adopt").addEventListener("click", () => start && start.settings && fill(start.settings));
document.addEventListener("dragover", (event) => { event.preventDefault(); at("drop").classList.add("over"); });
document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  if (event.dataTransfer.files.length) startFrom(event.dataTransfer.files[0]);
});

at("use-settings").addEventListener("click", () => fill(chosen.settings));
at("use-seed").addEventListener("click", () => { at("seed").value = chosen.settings.seeds[0]; lock(true); at("seed").focus(); });
at("edit-this").addEventListener("click", async () => {
  const bytes = Uint8Array.from(atob(chosen.b64_json), (sign) => sign.charCodeAt(0));
  await startFrom(new Blob([bytes], { type: "image/png" }));
  at("strength").focus();
});
at("copy-curl").addEventListener("click", () => copy(curlOf(chosen.settings), "The command"));
at("copy-python").addEventListener("click", () => copy(pythonOf(chosen.settings), "The program"));
at("clear").addEventListener("click", clearHistory);
at("close").addEventListener("click", () => at("large").close());
at("large").addEventListener("click", (event) => { if (event.target === at("large")) at("large").close(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
  if (event.key === "Escape" && leaving) leaving.abort();
});

at("key").value = sessionStorage.getItem("raverse-key") || "";
at("keep-key").checked = at("key").value !== "";
recall().then(connect).then(showExamples);
