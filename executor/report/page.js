"use strict";
// Looks closer at a part of the time: all pictures share it. Nothing is missing without this.
(() => {
  const time = document.querySelector(".time");
  if (!time) return;
  const WIDE = 1000, total = Number(time.dataset.seconds) || 1;
  const pictures = [...time.querySelectorAll("svg.t")], grid = time.querySelector(".grid");
  const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
  let from = 0, to = total;

  const words = (seconds, step) => {
    if (step < 1 && seconds < 60) return `${Number(seconds.toPrecision(6))} s`;
    const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]], said = [];
    let left = step < 1 ? seconds : Math.round(seconds);
    for (const [unit, name] of parts) {
      const many = unit === 1 ? Number(left.toFixed(3)) : Math.floor(left / unit);
      left -= many * unit;
      if (many) said.push(`${many} ${name}`);
    }
    return said.slice(0, step < 60 ? 4 : 2).join(" ") || "0 s";
  };

  const stepOf = span => {
    let step = STEPS.find(each => span / each <= 8) || 86400 * Math.ceil(span / 8 / 86400);
    while (step <= 1 && span / step < 4) step /= 2;
    return step;
  };

  const show = (start, end) => {
    const least = total / 20000, span = Math.min(total, Math.max(least, end - start));
    from = Math.min(Math.max(0, start), total - span);
    to = from + span;
    for (const picture of pictures) {
      const high = picture.viewBox.baseVal.height;
      picture.setAttribute("viewBox", `${from / total * WIDE} 0 ${span / total * WIDE} ${high}`);
    }
    grid.replaceChildren();
    const step = stepOf(span);
    for (let at = Math.ceil(from / step - 1e-9) * step; at <= from + 0.95 * span; at += step) {
      const mark = document.createElement("i"), text = document.createElement("span");
      mark.style.left = `${100 * (at - from) / span}%`;
      text.textContent = words(at, step);
      mark.append(text);
      grid.append(mark);
    }
  };

  const zoom = by => {
    const middle = (from + to) / 2, half = (to - from) / 2 * by;
    show(middle - half, middle + half);
  };
  const wishes = { in: () => zoom(0.5), out: () => zoom(2), all: () => show(0, total) };
  const tools = time.querySelector(".tools");
  tools.hidden = false;
  tools.addEventListener("click", event => wishes[event.target.dataset.zoom]?.());

  // Drag over a picture: that part of the time.
  const chosen = document.createElement("div");
  chosen.className = "chosen";
  let begun = null;
  const place = event => {
    const box = pictures[0].getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  };
  const mark = (one, other) => {
    const box = pictures[0].getBoundingClientRect(), left = box.left - time.getBoundingClientRect().left;
    chosen.style.left = `${left + Math.min(one, other) * box.width}px`;
    chosen.style.width = `${Math.abs(other - one) * box.width}px`;
  };
  time.addEventListener("pointerdown", event => {
    if (event.button || !event.target.closest("svg.t")) return;
    begun = place(event);
    event.preventDefault();
  });
  addEventListener("pointermove", event => {
    if (begun === null) return;
    mark(begun, place(event));
    time.append(chosen);
  });
  addEventListener("pointerup", event => {
    if (begun === null) return;
    const ends = [begun, place(event)].sort((one, other) => one - other), span = to - from;
    begun = null;
    chosen.remove();
    if (ends[1] - ends[0] > 0.005) show(from + ends[0] * span, from + ends[1] * span);
  });
  time.addEventListener("dblclick", event => event.target.closest("svg.t") && show(0, total));

  // The browser's own hints come late; ours at once.
  const tip = document.createElement("div");
  tip.className = "tip";
  time.addEventListener("pointerover", event => {
    const title = event.target.querySelector?.(":scope > title");
    if (title) {
      event.target.dataset.tip = title.textContent;
      title.remove();
    }
    tip.remove();
    if (!event.target.dataset?.tip) return;
    tip.textContent = event.target.dataset.tip;
    document.body.append(tip);
  });
  time.addEventListener("pointermove", event => {
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.clientY + 16}px`;
  });
  time.addEventListener("pointerleave", () => tip.remove());
})();
