// Keeps a page true: looks again when the server says that something changed, counts time down, asks before what can't be undone.

const live = () => [...document.querySelectorAll("[data-live]")];

async function refresh() {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" }, redirect: "manual" });
  if (answer.type === "opaqueredirect") return location.reload();
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const old of live()) {
    const found = fresh.getElementById(old.id);
    if (!found) continue;
    // A page whose session has moved on has other parts: a terminal, say. It is loaded anew.
    if (old.dataset.state && old.dataset.state !== found.dataset.state) return location.reload();
    const open = [...old.querySelectorAll("details")].map((item) => item.open);
    const focused = old.contains(document.activeElement);
    if (!focused && old.innerHTML !== found.innerHTML) {
      old.replaceChildren(...found.childNodes);
      old.querySelectorAll("details").forEach((item, at) => { if (at < open.length) item.open = open[at]; });
    }
  }
  show();
}

let due = null;
function refreshSoon() {
  due ??= setTimeout(() => { due = null; refresh().catch(() => {}); }, 50);
}

function listen() {
  if (!live().length || !document.querySelector(".who")) return;
  const everyone = document.querySelector("[data-everyone]") ? "?everyone=true" : "";
  const events = new EventSource("/events" + everyone);
  let first = true;
  events.addEventListener("hello", () => { if (!first) refreshSoon(); first = false; });
  events.addEventListener("change", refreshSoon);
  events.addEventListener("end", () => location.reload());
  refreshSoon(); // what changed between the page and the first event
  addEventListener("pagehide", () => events.close());
}

function show() {
  for (const item of document.querySelectorAll("[data-ends]")) {
    const minutes = Math.max(0, Math.floor((new Date(item.dataset.ends) - Date.now()) / 60000));
    item.textContent = minutes >= 60 ? `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min` : `${minutes} min`;
  }
  for (const item of document.querySelectorAll("time[datetime]")) {
    item.textContent = new Date(item.dateTime).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  }
}

document.addEventListener("submit", (event) => {
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
listen();
