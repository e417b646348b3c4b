"use strict";
const FRAME_MS = 125, HOLD_FRAMES = 6; // 8 frames per second, and a rest on the last one
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

for (const film of document.querySelectorAll(".film")) {
  const slider = film.querySelector("input"), button = film.querySelector("button");
  const ticks = film.querySelectorAll(".ticks i"), caption = film.querySelector(".caption");
  const captions = JSON.parse(film.dataset.captions), given = film.dataset.given.split(" ");
  const columns = Number(film.dataset.columns), last = given.length - 1;
  const panels = [...film.querySelectorAll("canvas")].map((canvas) => ({
    canvas, image: document.getElementById(canvas.dataset.image), order: canvas.dataset.order.split(" ").map(Number),
  }));
  let playing = !calm, visible = false, held = 0;

  function show(time) {
    for (const { canvas, image, order } of panels) {
      const { width, height } = canvas, place = order[time];
      const left = (place % columns) * width, top = Math.floor(place / columns) * height;
      canvas.getContext("2d").drawImage(image, left, top, width, height, 0, 0, width, height);
    }
    ticks.forEach((tick, place) => tick.classList.toggle("now", place === time));
    film.dataset.now = given[time] === "1" ? "given" : "predicted";
    caption.textContent = captions[time];
    slider.setAttribute("aria-valuetext", captions[time]);
    slider.value = time;
  }

  function play(on) {
    playing = on;
    button.toggleAttribute("data-playing", on);
    button.setAttribute("aria-label", button.getAttribute("aria-label").replace(/^\w+/, on ? "Pause" : "Play"));
  }

  function advance() {
    if (!playing || !visible) return;
    const time = Number(slider.value);
    if (time === last && held++ < HOLD_FRAMES) return;
    held = 0;
    show(time === last ? 0 : time + 1);
  }

  slider.addEventListener("input", () => { play(false); show(Number(slider.value)); });
  button.addEventListener("click", () => play(!playing));
  new IntersectionObserver(([entry]) => { visible = entry.isIntersecting; }).observe(film);
  play(playing);
  Promise.all(panels.map(({ image }) => image.decode())).then(() => {
    show(0);
    setInterval(advance, FRAME_MS);
    film.dataset.ready = "";
  });
}
