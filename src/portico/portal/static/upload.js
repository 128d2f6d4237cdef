// Files by drag and drop, in parts, each of which is sent again when the network fails for a moment. Without this script the form
// sends them as a whole.

const PART = 4 << 20;
const TRIES = 6;
const form = document.querySelector("[data-drop]");

function row(name) {
  const item = document.createElement("li");
  item.className = "row past";
  const what = document.createElement("div");
  what.className = "what";
  what.textContent = name;
  const bar = document.createElement("progress");
  const said = document.createElement("span");
  said.className = "dim";
  item.append(what, bar, said);
  form.querySelector("[data-drop-list]").append(item);
  return { bar, said };
}

async function send(file) {
  const { bar, said } = row(file.name);
  const upload = crypto.getRandomValues(new Uint32Array(3)).reduce((text, number) => text + number.toString(36), "");
  let offset = 0;
  do {
    const end = Math.min(offset + PART, file.size);
    const query = new URLSearchParams({ name: file.name, upload, offset, last: end === file.size });
    let answer = null;
    for (let attempt = 1; attempt <= TRIES && !answer; attempt++) {
      try {
        answer = await fetch(`${form.dataset.drop}?${query}`, {
          method: "POST", body: file.slice(offset, end), headers: { "Content-Type": "application/octet-stream" },
        });
      } catch {
        said.textContent = "waiting for the network…";
        await new Promise((done) => { setTimeout(done, 1000 * 2 ** attempt); });
      }
    }
    if (!answer?.ok) {
      const page = answer ? new DOMParser().parseFromString(await answer.text(), "text/html") : null;
      const why = page?.querySelector(".sheet p, .note strong")?.textContent ?? "";
      said.textContent = `${page?.querySelector("h1")?.textContent ?? "The network did not come back."} ${why}`;
      bar.remove();
      return;
    }
    offset = end;
    bar.value = file.size ? offset / file.size : 1;
    said.textContent = "";
  } while (offset < file.size);
  said.textContent = "is in Uploads";
}

async function sendAll(files) {
  for (const file of files) await send(file); // one after the other: the link is narrow
}

if (form) {
  const input = form.querySelector("input[type=file]");
  form.querySelector("[data-drop-hint]").hidden = false;
  form.querySelector("[data-drop-limit]").textContent = "2 GB a file";
  form.querySelector("button").hidden = true;
  input.addEventListener("change", () => { sendAll([...input.files]).finally(() => { input.value = ""; }); });
  for (const name of ["dragover", "dragleave", "drop"]) {
    form.addEventListener(name, (event) => { event.preventDefault(); form.classList.toggle("over", name === "dragover"); });
  }
  form.addEventListener("drop", (event) => sendAll([...event.dataTransfer.files]));
}
