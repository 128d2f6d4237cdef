// The terminal: xterm.js on the protocol of docs/protocol.md, "Terminal". It counts the bytes that it has seen, and attaches
// again where it was: after a reload from the beginning of what is kept, after a lost connection with nothing twice.

import { Terminal } from "./vendor/xterm/xterm.mjs";
import { FitAddon } from "./vendor/xterm/addon-fit.mjs";
import { WebLinksAddon } from "./vendor/xterm/addon-web-links.mjs";
import { CUT, guest, makeBackoff, reloadIfGone, say, screen, stage, tool, url, viewOnly } from "./stage.js";

const terminal = new Terminal({
  fontFamily: 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace',
  fontSize: Number(localStorage.getItem("terminal-font-size")) || 15,
  scrollback: 10000,
  cursorBlink: !viewOnly,
  disableStdin: viewOnly,
  macOptionIsMeta: true,
  theme: { background: "#0c1016", foreground: "#dfe6ef" },
});
const fit = new FitAddon();
terminal.loadAddon(fit);
terminal.loadAddon(new WebLinksAddon());
terminal.open(screen);
fit.fit();

const encoder = new TextEncoder();
const backoff = makeBackoff();
let socket = null;
let offset = 0n; // of the first byte that was not seen
let replayUntil = 0n; // what comes before is a replay, to which the terminal's own answers must not be typed
let written = 0n; // how far xterm.js has come
let rest = new Uint8Array();
let exited = false;
let waitsSince = null; // for anything to be heard after something was typed
const SILENT_MS = 8000;

function frame(kind, payload) {
  const bytes = new Uint8Array(5 + payload.length);
  bytes[0] = kind.charCodeAt(0);
  new DataView(bytes.buffer).setUint32(1, payload.length);
  bytes.set(payload, 5);
  return bytes;
}

function send(kind, payload) {
  if (socket?.readyState !== WebSocket.OPEN) return;
  if (kind === "i") waitsSince ??= performance.now();
  socket.send(frame(kind, payload));
}

function sendSize() {
  const bytes = new Uint8Array(4);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, terminal.cols);
  view.setUint16(2, terminal.rows);
  if (!viewOnly && !guest) send("r", bytes);
}

function take(kind, payload) {
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  if (kind === "s") {
    const start = view.getBigUint64(0);
    replayUntil = view.getBigUint64(8);
    if (start !== offset) terminal.reset(); // something was missed: begin with the oldest that is kept
    offset = written = start;
  } else if (kind === "o") {
    offset += BigInt(payload.length);
    const end = offset;
    terminal.write(payload, () => { written = end; });
  } else if (kind === "e") {
    exited = true;
    terminal.write(`\r\n\x1b[2m[the shell ended with status ${view.getUint32(0)}]\x1b[0m\r\n`);
  }
}

function feed(data) {
  const bytes = new Uint8Array(rest.length + data.length);
  bytes.set(rest);
  bytes.set(data, rest.length);
  let at = 0;
  while (bytes.length - at >= 5) {
    const length = new DataView(bytes.buffer, at + 1, 4).getUint32(0);
    if (bytes.length - at < 5 + length) break;
    take(String.fromCharCode(bytes[at]), bytes.slice(at + 5, at + 5 + length));
    at += 5 + length;
  }
  rest = bytes.slice(at);
}

function connect() {
  return new Promise((resolve) => {
    socket = new WebSocket(url, ["binary"]);
    socket.binaryType = "arraybuffer";
    rest = new Uint8Array();
    socket.onopen = () => {
      const seen = new Uint8Array(8);
      new DataView(seen.buffer).setBigUint64(0, offset);
      send("a", seen);
      sendSize();
      backoff.reset();
      say(viewOnly ? "looking" : "connected", "up");
    };
    socket.onmessage = (event) => { waitsSince = null; feed(new Uint8Array(event.data)); };
    // A network that went away says nothing, and the browser waits for minutes. To attach again costs nothing, and loses nothing.
    const own = socket;
    const leave = (code) => { clearInterval(timer); removeEventListener("online", giveUp); waitsSince = null; resolve(code); };
    const giveUp = () => { own.onmessage = own.onclose = null; own.close(); leave(0); };
    const timer = setInterval(() => { if (waitsSince !== null && performance.now() - waitsSince > SILENT_MS) giveUp(); }, 1000);
    addEventListener("online", giveUp);
    socket.onclose = (event) => leave(event.code);
  });
}

async function stay() {
  while (true) {
    const code = await connect();
    if (exited) return say("ended");
    if (code === CUT) return location.reload();
    say("connection lost; trying again…", "down");
    await reloadIfGone();
    await backoff.wait();
  }
}

terminal.onData((text) => { if (written >= replayUntil) send("i", encoder.encode(text)); });
terminal.onBinary((text) => { if (written >= replayUntil) send("i", Uint8Array.from(text, (c) => c.charCodeAt(0))); });
terminal.onResize(sendSize);
terminal.onTitleChange((title) => { document.title = `${title || stage.dataset.title} · Portico`; });

// Copy and paste as in other programs: Ctrl C copies while something is selected, and interrupts otherwise.
terminal.attachCustomKeyEventHandler((event) => {
  if (event.type !== "keydown" || !event.ctrlKey || event.altKey) return true;
  const copies = event.code === "KeyC" && (event.shiftKey || terminal.hasSelection());
  if (copies && terminal.hasSelection()) {
    navigator.clipboard?.writeText(terminal.getSelection());
    if (!event.shiftKey) terminal.clearSelection();
    event.preventDefault();
    return false;
  }
  return !(event.code === "KeyV"); // the browser's own paste event brings the text
});

function changeFont(step) {
  terminal.options.fontSize = Math.min(32, Math.max(8, terminal.options.fontSize + step));
  localStorage.setItem("terminal-font-size", terminal.options.fontSize);
  fit.fit();
}
tool("smaller")?.addEventListener("click", () => changeFont(-1));
tool("larger")?.addEventListener("click", () => changeFont(1));

new ResizeObserver(() => { if (!viewOnly && !guest) fit.fit(); }).observe(screen);
terminal.focus();
stay();
window.porticoTerminal = terminal;
