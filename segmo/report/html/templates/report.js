"use strict";
(() => {
  const $ = (selector, from = document) => from.querySelector(selector);
  const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
  const search = $("#search"), count = $("#count"), folds = $$("details.fold");
  let hits = [], at = -1, before = null;

  const fold = (open) => folds.forEach((each) => { each.open = open; });

  // --- search: marks matches, opens the folds that have some, hides the others

  const unmark = () => {
    for (const mark of $$("#changes mark")) {
      const parent = mark.parentNode;
      mark.replaceWith(mark.textContent);
      parent.normalize();
    }
  };

  const markIn = (cell, wanted) => {
    const text = cell.textContent, low = text.toLowerCase();
    const parts = [];
    let from = 0, found = low.indexOf(wanted);
    if (found < 0) return;
    while (found >= 0) {
      const mark = document.createElement("mark");
      mark.textContent = text.slice(found, found + wanted.length);
      parts.push(text.slice(from, found), mark);
      hits.push(mark);
      from = found + wanted.length;
      found = low.indexOf(wanted, from);
    }
    cell.replaceChildren(...parts, text.slice(from));
  };

  const look = () => {
    const wanted = search.value.trim().toLowerCase();
    unmark();
    hits = [];
    at = -1;
    if (!wanted) {
      if (before) before.forEach((open, i) => { folds[i].open = open; });
      before = null;
      folds.forEach((each) => each.classList.remove("hidden"));
      count.textContent = "";
      return;
    }
    before = before || folds.map((each) => each.open);
    let layers = 0;
    for (const each of folds) {
      const had = hits.length;
      $$(".diff > div", each).forEach((cell) => markIn(cell, wanted));
      const some = hits.length > had;
      each.open = some;
      each.classList.toggle("hidden", !some);
      layers += some;
    }
    count.textContent = `${hits.length} matches in ${layers} places`;
  };

  const step = (by) => {
    if (!hits.length) return;
    if (at >= 0) hits[at].classList.remove("now");
    at = (at + by + hits.length) % hits.length;
    hits[at].classList.add("now");
    hits[at].scrollIntoView({ block: "center" });
    count.textContent = `${at + 1} of ${hits.length} matches`;
  };

  let timer;
  if (search) {
    search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(look, 120); });
    search.addEventListener("keydown", (event) => {
      if (event.key === "Enter") { event.preventDefault(); clearTimeout(timer); if (!hits.length) look(); step(event.shiftKey ? -1 : 1); }
      if (event.key === "Escape") { search.value = ""; look(); search.blur(); }
    });
    $("#open-all").addEventListener("click", () => fold(true));
    $("#close-all").addEventListener("click", () => fold(false));
  }

  // --- the video: with or without the mask, one scene or all

  const strip = $(".strip"), masks = $("#masks"), scenes = $$("tr.scene");
  const showScene = (row) => {
    const on = !row.classList.contains("on");
    scenes.forEach((each) => { each.classList.remove("on"); $("button", each).setAttribute("aria-pressed", "false"); });
    row.classList.toggle("on", on);
    $("button", row).setAttribute("aria-pressed", String(on));
    const frames = $$("figure", strip);
    frames.forEach((frame) => frame.classList.toggle("off", on && frame.dataset.scene !== row.dataset.scene));
    const first = frames.find((frame) => frame.dataset.scene === row.dataset.scene);
    if (on && first) strip.scrollTop = first.offsetTop - strip.offsetTop - 8;
  };
  scenes.forEach((row) => row.addEventListener("click", () => showScene(row)));
  if (masks) {
    masks.addEventListener("click", () => {
      const on = strip.classList.toggle("plain");
      masks.setAttribute("aria-pressed", String(!on));
    });
  }

  // --- keys

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
    if (event.key === "/" && search) { event.preventDefault(); search.focus(); search.select(); }
    if (event.key === "n") step(1);
    if (event.key === "p") step(-1);
    if (event.key === "e") fold(true);
    if (event.key === "c") fold(false);
    if (event.key === "m" && masks) masks.click();
  });
  document.documentElement.dataset.ready = "true";
})();
