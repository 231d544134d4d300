"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const base = location.pathname.replace(/\/+$/, "");
  const order = ["starting", "scan", "linking", "connected"];
  const words = {
    starting: "Starting. The code will be here in a moment.",
    scan: "Scan the code with your phone.",
    linking: "Scanned. Linking your phone, keep WhatsApp open.",
    passkey: "WhatsApp asks for the passkey of this account. Whoever sent you this link has to go on from here.",
    connected: "Connected. You can close this page.",
    expired: "Nobody scanned a code in time.",
    failed: "Linking did not work, or the phone was unlinked.",
    stopped: "Linking was stopped. Ask whoever sent you this link to start it again.",
    gone: "This link cannot be used any more. Ask whoever sent it to you for a new one.",
  };
  const step = { passkey: "linking", expired: "scan", failed: "scan", stopped: "starting" };
  let expires = 0;

  const say = (element, text) => { if (element.textContent !== text) element.textContent = text; };

  const forget = () => {
    expires = 0;
    at("qr").hidden = true;
    at("qr").removeAttribute("src");
    say(at("countdown"), "");
    say(at("pairing-code"), "");
    at("pairing-code-says").hidden = true;
  };

  const show = (state) => {
    document.body.dataset.state = state;
    say(at("status"), words[state] || words.starting);
    say(at("hint"), "");
    at("scan").hidden = state !== "scan";
    at("again").hidden = state !== "expired" && state !== "failed";
    at("restart").disabled = false;
    at("steps").hidden = state === "gone";
    if (state !== "scan") forget();
    const now = order.indexOf(step[state] || state);
    for (const item of at("steps").children) {
      const place = order.indexOf(item.dataset.step);
      item.className = place < now || state === "connected" ? "done" : "";
      if (place === now) item.setAttribute("aria-current", "step");
      else item.removeAttribute("aria-current");
    }
  };

  const draw = (code) => {
    const image = at("qr");
    image.src = code.image;
    image.dataset.rotation = code.rotation;
    image.alt = `QR code ${code.rotation} of ${code.of} to scan with WhatsApp`;
    image.hidden = false;
    expires = performance.now() + code.expires_in_ms;
    tick();
  };

  const tick = () => {
    if (!expires) return;
    const left = Math.ceil((expires - performance.now()) / 1000);
    say(at("countdown"), left > 0 ? `A new code comes in ${left} s` : "A new code is coming…");
  };
  setInterval(tick, 500);

  const stream = new EventSource(`${base}/events`);
  stream.addEventListener("state", (event) => {
    const told = JSON.parse(event.data);
    if (document.body.dataset.state !== told.state) show(told.state);
    say(at("hint"), "");
    if (told.state === "scan" && told.code) draw(told.code);
    if (told.state === "connected") stream.close();
  });
  stream.addEventListener("gone", () => { stream.close(); show("gone"); });
  stream.addEventListener("error", () => {
    if (stream.readyState !== EventSource.CLOSED) {
      say(at("hint"), "The connection is lost. Trying again…");
      return;
    }
    // Refused: the link is no good any more, or the page is open too often.
    fetch(base, { credentials: "omit", cache: "no-store" }).then((answer) => {
      if (answer.status === 404) show("gone");
      else say(at("hint"), "This page cannot be shown at the moment. Reload it in a while.");
    }).catch(() => say(at("hint"), "The connection is lost. Reload this page."));
  });

  const post = (path, body) => fetch(`${base}/${path}`, {
    method: "POST",
    headers: body ? { "Content-Type": "application/json" } : {},
    body: body ? JSON.stringify(body) : undefined,
    credentials: "omit",
    cache: "no-store",
  });
  const problem = (status) => ({
    404: words.gone,
    409: "That is not possible at the moment. Scan the QR code instead.",
    422: "That is not a phone number with its country code, such as +49 151 2345678.",
    429: "That was asked for too often. Wait some minutes and try again.",
  })[status] || "That did not work. Try again, or scan the QR code instead.";

  at("restart").addEventListener("click", async () => {
    at("restart").disabled = true;
    try {
      const answer = await post("restart");
      if (answer.ok) {
        say(at("status"), words.starting);
        // Should it take long, asking again does no harm.
        setTimeout(() => { at("restart").disabled = false; }, 15000);
      }
      else {
        at("restart").disabled = false;
        say(at("hint"), answer.status === 409 ? "" : problem(answer.status));
      }
    } catch {
      at("restart").disabled = false;
      say(at("hint"), problem(0));
    }
  });

  at("number-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = event.target.querySelector("button");
    button.disabled = true;
    say(at("number-problem"), "");
    try {
      const answer = await post("code", { phone: at("phone").value });
      if (answer.ok) {
        const { code } = await answer.json();
        at("pairing-code-says").hidden = false;
        say(at("pairing-code"), code);
      } else say(at("number-problem"), problem(answer.status));
    } catch {
      say(at("number-problem"), problem(0));
    }
    button.disabled = false;
  });
})();
