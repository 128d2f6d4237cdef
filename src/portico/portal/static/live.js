// Keeps a page true: looks again when the server says that something changed, counts time down, asks before what can't be undone.

const live = () => [...document.querySelectorAll("[data-live]")];

// Who works with the keyboard keeps their place: the same button of the same form, the same link.
const describe = (item) => [item.textContent, item.getAttribute("href"), item.form?.getAttribute("action")].join(" ");

async function refresh() {
  if (!live().length) return;
  // A page that answered a form stands at the form's address, where it can't be looked at again; it says where it can.
  const address = document.querySelector("[data-live-at]")?.dataset.liveAt ?? location.href;
  const answer = await fetch(address, { headers: { Accept: "text/html" }, redirect: "manual" });
  if (answer.type === "opaqueredirect" || answer.status === 404) return location.reload(); // the page itself says why
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const old of live()) {
    const found = fresh.getElementById(old.id);
    if (!found) continue;
    // A page whose session has moved on has other parts: a terminal, say. It is loaded anew.
    if (old.dataset.state && old.dataset.state !== found.dataset.state) return location.reload();
    const read = [...old.querySelectorAll("[data-tail]")].some((item) => item.scrollTop + item.clientHeight < item.scrollHeight - 40);
    if (read) continue; // who has scrolled back reads
    const open = [...old.querySelectorAll("details")].map((item) => item.open);
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    old.replaceChildren(...found.childNodes);
    old.querySelectorAll("details").forEach((item, at) => { if (at < open.length) item.open = open[at]; });
    if (focused) [...old.querySelectorAll(focused.tagName)].find((item) => describe(item) === describe(focused))?.focus();
  }
  show();
}

// A notice that is new is shown on whatever page one is, a desktop in full screen too; the home page lists them all.
const nameOf = (note) => note.querySelector("form")?.getAttribute("action");
async function announce() {
  if (document.getElementById("notices")) return;
  const answer = await fetch("/notices", { headers: { Accept: "text/html" }, redirect: "manual" });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  showControls(page.getElementById("controls"));
  const notes = [...page.querySelectorAll("#notices .note")];
  const before = sessionStorage.getItem("portico-notices");
  const known = new Set(JSON.parse(before ?? "[]"));
  if (before !== null) {
    for (const note of notes.filter((one) => !known.has(nameOf(one)))) {
      note.classList.add("toast");
      note.setAttribute("role", "status");
      (document.fullscreenElement ?? document.body).append(note);
      setTimeout(() => note.remove(), 20000);
    }
  }
  sessionStorage.setItem("portico-notices", JSON.stringify(notes.map(nameOf)));
  show();
}

// Who asks to control a desktop, and who does, stands above whatever page there is, one in full screen and a dialog too.
const controls = document.createElement("div");
controls.className = "controls floating";
controls.setAttribute("aria-live", "assertive");
let controlsShown = "";
function placeControls() {
  if (controls.hasChildNodes()) (document.querySelector("dialog[open]") ?? document.fullscreenElement ?? document.body).append(controls);
  else controls.remove();
}
function showControls(found) {
  if (!found || found.innerHTML === controlsShown) return;
  controlsShown = found.innerHTML;
  controls.replaceChildren(...found.children);
  placeControls();
}
document.addEventListener("fullscreenchange", placeControls);
document.addEventListener("portico-shown", placeControls);
document.addEventListener("close", placeControls, true); // of a dialog
async function sendAnswer(form) {
  for (const button of controls.querySelectorAll("button")) button.disabled = true;
  await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)), redirect: "manual" }).catch(() => {});
  controlsShown = ""; // what is so now is shown anew, an answer that did not get through too
  refreshSoon();
}

let due = null;
function refreshSoon() {
  due ??= setTimeout(() => { due = null; refresh().catch(() => {}); announce().catch(() => {}); }, 50);
}

// A browser opens only six connections to a site (HTTP/1.1), and a feed holds one. So one page of a browser has the feed and tells
// the others; when it goes, its lock goes to the next. Without locks (plain http, but for localhost) each page that is looked at
// has a feed of its own.
const address = document.querySelector("[data-everyone]") ? "/feed?everyone=true" : "/feed";
const channel = new BroadcastChannel(address);
let events = null;

function hear(news) {
  if (news === "end") location.reload();
  else refreshSoon();
}

function open() {
  events = new EventSource(address);
  for (const news of ["hello", "change", "end"]) {
    events.addEventListener(news, () => { channel.postMessage(news); hear(news); });
  }
}

function close() {
  events?.close();
  events = null;
}

function listen() {
  if (!document.querySelector(".who")) return;
  channel.onmessage = (event) => hear(event.data);
  refreshSoon(); // what changed between the page and the first news
  if (navigator.locks) {
    navigator.locks.request(address, () => { open(); return new Promise(() => {}); });
    return;
  }
  const look = () => (document.hidden ? close() : events ?? open());
  document.addEventListener("visibilitychange", look);
  look();
}
// What no feed tells of: a queue, or a file that grows. Looked at again every so often, by who looks.
function poll() {
  const seconds = Math.min(...live().map((item) => Number(item.dataset.poll || Infinity)));
  if (Number.isFinite(seconds)) setInterval(() => { if (!document.hidden) refreshSoon(); }, seconds * 1000);
}
addEventListener("pagehide", close);
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

function show() {
  for (const item of document.querySelectorAll("[data-tail]")) item.scrollTop = item.scrollHeight;
  for (const item of document.querySelectorAll("[data-ends]")) {
    const minutes = Math.max(0, Math.floor((new Date(item.dataset.ends) - Date.now()) / 60000));
    item.textContent = minutes >= 60 ? `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min` : `${minutes} min`;
  }
  for (const item of document.querySelectorAll("time[datetime]")) {
    item.textContent = new Date(item.dateTime).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  }
}

document.addEventListener("submit", (event) => {
  if (controls.contains(event.target)) {
    event.preventDefault(); // the page stays, and a desktop in full screen with it
    return sendAnswer(event.target);
  }
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) return event.preventDefault();
  if (event.target.target === "_blank") return;
  // Twice the same click is one request; a page that comes back from the cache has its buttons again.
  setTimeout(() => event.target.querySelectorAll("button").forEach((button) => { button.disabled = true; }), 0);
});
addEventListener("pageshow", () => document.querySelectorAll("button[disabled]").forEach((button) => { button.disabled = false; }));

document.addEventListener("click", async (event) => {
  const from = event.target.dataset?.copy;
  if (!from) return;
  const text = document.querySelector(from).textContent;
  try {
    await navigator.clipboard.writeText(text);
    event.target.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(document.querySelector(from));
    event.target.textContent = "Selected: press Ctrl C";
  }
});

show();
setInterval(show, 15000);
poll();
document.addEventListener("portico-shown", show);
listen();
