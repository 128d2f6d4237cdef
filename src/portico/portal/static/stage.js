// What terminal and desktop share: the address of the stream, what is said about the connection, full screen, coming back.

export const stage = document.querySelector(".stage");
export const screen = stage.querySelector("[data-screen]");
export const viewOnly = "viewOnly" in stage.dataset;
export const guest = "guest" in stage.dataset; // who types and points in a colleague's session: the size is its owner's
export const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${stage.dataset.stream}`;

const link = stage.querySelector("[data-link]");
export function say(text, kind = "") {
  link.textContent = text;
  link.className = `link ${kind}`;
}

// Waits longer after each failure, and not at all when the network or the tab has just come back.
export function makeBackoff() {
  let delay = 250;
  return {
    reset() { delay = 250; },
    wait() {
      const time = delay;
      delay = Math.min(delay * 2, 5000);
      return new Promise((resolve) => {
        const done = () => { clearTimeout(timer); removeEventListener("online", done); document.removeEventListener("visibilitychange", done); resolve(); };
        const timer = setTimeout(done, time);
        addEventListener("online", done);
        document.addEventListener("visibilitychange", done);
      });
    },
  };
}

// 4001: what the stream lived by was taken back. The page itself says why, once it is loaded anew.
export const CUT = 4001;

// Taken back, ended, signed out, or only a lost connection? The page knows; if it is another one now, it is loaded anew.
export async function reloadIfGone() {
  const answer = await fetch(location.href, { redirect: "manual", signal: AbortSignal.timeout(5000) }).catch(() => null);
  if (answer && !answer.ok && answer.status < 500) location.reload();
}

export const tool = (name) => stage.querySelector(`[data-do=${name}]`);
tool("fullscreen")?.addEventListener("click", () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else stage.requestFullscreen().catch(() => say("full screen is not allowed here"));
});
document.addEventListener("fullscreenchange", () => screen.querySelector("textarea, canvas")?.focus());

for (const name of ["clipboard", "keys"]) {
  tool(name)?.addEventListener("click", () => {
    for (const panel of stage.querySelectorAll(".panel")) panel.hidden = panel.dataset.panel !== name || !panel.hidden;
  });
}
