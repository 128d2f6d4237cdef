// Links with data-dialog open their page in a dialog, in place; its forms stay there until one leads somewhere else. Without
// this script they are links to pages.

const dialog = document.createElement("dialog");
dialog.innerHTML = '<button type="button" class="close quiet" aria-label="Close" data-close>✕</button><div data-body></div>';
const body = dialog.querySelector("[data-body]");
let from = "";

function show(text) {
  const sheet = new DOMParser().parseFromString(text, "text/html").querySelector("main .sheet");
  if (!sheet) return false;
  // What the page behind keeps up to date by its id is not doubled.
  for (const item of sheet.querySelectorAll("[data-live]")) { item.removeAttribute("data-live"); item.removeAttribute("id"); }
  body.replaceChildren(document.importNode(sheet, true));
  document.dispatchEvent(new Event("portico-shown"));
  const heading = body.querySelector("h1");
  dialog.setAttribute("aria-label", heading ? heading.textContent : "Dialog");
  if (!dialog.open) {
    (document.fullscreenElement ?? document.body).append(dialog);
    dialog.showModal();
  }
  (body.querySelector("[autofocus]") ?? body.querySelector("[aria-invalid], input:not([type=hidden]), button, a") ?? dialog).focus();
  return true;
}

async function load(address, options) {
  const answer = await fetch(address, options);
  const here = new URL(answer.url).pathname === from;
  if ((answer.redirected && !here) || !show(await answer.text())) location.assign(answer.url);
}

document.addEventListener("click", (event) => {
  if (event.target.closest("dialog [data-close]") || event.target === dialog) {
    event.preventDefault();
    dialog.close();
    return;
  }
  const link = event.target.closest("a[data-dialog]");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  from = new URL(link.href).pathname;
  load(link.href).catch(() => location.assign(link.href));
});

dialog.addEventListener("submit", (event) => {
  if (event.defaultPrevented || event.target.method === "dialog") return;
  event.preventDefault();
  const form = event.target;
  const options = { method: "POST", body: new URLSearchParams(new FormData(form)) };
  load(form.action, options).catch(() => form.submit());
});

dialog.addEventListener("close", () => { body.replaceChildren(); dialog.remove(); });
