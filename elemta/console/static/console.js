// Renews a page that says so, from the events of the daemon; nothing works only with this script.
"use strict";
(() => {
  const main = document.getElementById("main");
  const every = Number(main.dataset.refresh || 0);
  if (!every || !window.EventSource) return;
  const live = document.getElementById("live");
  let seen = 0;
  let busy = false;

  const inUse = () => {
    const held = document.activeElement;
    return document.hidden || (main.contains(held) && held !== main && held.tagName !== "A")
      || String(window.getSelection()) !== "" || main.querySelector("details[open]") !== null;
  };

  const renew = async () => {
    busy = true;
    try {
      const answer = await fetch(location.href, { headers: { "X-Refresh": "1" }, credentials: "same-origin" });
      if (answer.redirected) { location.reload(); return; }
      if (!answer.ok) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const focused = main.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
      main.replaceChildren(...page.getElementById("main").childNodes);
      if (focused) main.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
    } finally {
      busy = false;
    }
  };

  const events = new EventSource("/v1/events");
  events.addEventListener("state", () => {
    live.textContent = "live ·";
    seen += 1;
    if (seen % every === 0 && !busy && !inUse()) renew().catch(() => { live.textContent = "not live ·"; });
  });
  events.addEventListener("error", () => { live.textContent = "not live ·"; });
  window.addEventListener("pagehide", () => events.close());
})();
