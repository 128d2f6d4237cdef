// The desktop: noVNC on the session's stream. It follows the window's size, comes back by itself, and shares the clipboard
// both ways where the browser allows it; the panel does where it does not. On a slow link the picture gets coarser, not later.

import KeyTable from "./vendor/novnc/core/input/keysym.js";
import { Desktop, Quality, watch } from "./link.js";
import { guest, makeBackoff, reloadIfGone, say, screen, stage, tool, url, viewOnly } from "./stage.js";

const backoff = makeBackoff();
const text = stage.querySelector("[data-panel=clipboard] textarea");
let rfb = null;
const complaint = stage.querySelector("[data-clipboard-error]");
const largest = (way) => Number(stage.dataset[way] ?? Infinity); // in bytes, of the site's policy; the gateway holds it
const largestIn = largest("clipboardIn");
const largestOut = largest("clipboardOut");
let sent = null; // the last text that went to the desktop, so that it does not go back and forth

const ATTEMPT_MS = 6000; // for a connection to be there; longer after each that was not
const quality = new Quality(); // what the link was good for is remembered when it is lost
const menu = tool("quality");
if (menu) menu.value = localStorage.getItem("desktop-quality") ?? "auto";
const isAutomatic = () => !menu || menu.value === "auto";

function setQuality() {
  const level = isAutomatic() ? quality.level : Number(menu.value);
  rfb.qualityLevel = level;
  rfb.compressionLevel = level > 2 ? 2 : 6;
}

function sayConnected() {
  const said = guest ? "connected to a colleague" : viewOnly ? "looking" : "connected";
  say(isAutomatic() && quality.level < 6 ? `${said}; slow link, coarser picture` : said, "up");
}

// Lasts until the connection is lost, or there never was one; true if there was.
function connect(patience) {
  return new Promise((resolve) => {
    let stop = () => {}, wasThere = false;
    const socket = new WebSocket(url, ["binary"]);
    socket.binaryType = "arraybuffer";
    screen.replaceChildren();
    rfb = new Desktop(screen, socket, { shared: true });
    const own = rfb;
    const leave = () => { clearTimeout(attempt); stop(); resolve(wasThere); };
    const giveUp = () => {
      leave();
      own.disconnect();
      socket.onclose?.(new CloseEvent("close")); // who would answer has gone
    };
    const attempt = setTimeout(giveUp, ATTEMPT_MS * patience);
    rfb.viewOnly = viewOnly; // what really keeps a viewer's hands off is the gateway
    rfb.scaleViewport = true;
    rfb.resizeSession = !viewOnly && !guest;
    rfb.focusOnClick = true;
    rfb.background = "#0c1016";
    setQuality();
    rfb.addEventListener("connect", () => {
      clearTimeout(attempt);
      wasThere = true;
      backoff.reset();
      sayConnected();
      stop = watch(own, socket, {
        onLag(lag, isLoaded) { quality.take(lag, isLoaded); setQuality(); sayConnected(); },
        onSilent() { say("no answer from the network…", "down"); },
        onDead: giveUp,
      });
      rfb.focus();
      offerClipboard();
    });
    rfb.addEventListener("disconnect", leave);
    rfb.addEventListener("securityfailure", leave);
    rfb.addEventListener("clipboard", (event) => takeClipboard(event.detail.text));
    window.porticoDesktop = rfb;
  });
}

async function stay() {
  let patience = 1;
  while (true) {
    patience = (await connect(patience)) ? 1 : Math.min(patience * 1.5, 5);
    say("connection lost; trying again…", "down");
    await reloadIfGone();
    await backoff.wait();
  }
}

addEventListener("offline", () => say("no network", "down"));
menu?.addEventListener("change", () => {
  localStorage.setItem("desktop-quality", menu.value);
  setQuality();
  sayConnected();
});

async function takeClipboard(content) {
  if (!largestOut) return;
  if (text) text.value = content;
  if (content === sent) return;
  sent = content;
  if (guest) return; // whose clipboards are two people's: only the panel goes between them
  try { await navigator.clipboard.writeText(content); } catch { /* not allowed, or not focused: the panel has it */ }
}

async function offerClipboard() {
  if (viewOnly || guest || !largestIn || !navigator.clipboard?.readText) return;
  try {
    const content = await navigator.clipboard.readText();
    if (content && content !== sent) give(content);
  } catch { /* not allowed: the panel serves */ }
}

function give(content) {
  const size = new TextEncoder().encode(content.replace(/\r\n|\r|\n/g, "\r\n")).length; // as it is sent
  const isTooLarge = size > largestIn;
  if (complaint) {
    complaint.textContent = isTooLarge ? `This text has ${size} bytes; this site lets ${largestIn} into a desktop.` : "";
    complaint.hidden = !isTooLarge;
  }
  if (isTooLarge) return;
  sent = content;
  if (text) text.value = content;
  rfb?.clipboardPasteFrom(content);
}

if (!viewOnly) {
  addEventListener("focus", offerClipboard);
  text?.addEventListener("input", () => give(text.value));
  stage.querySelector("[data-panel=keys]")?.addEventListener("click", (event) => {
    const press = (keysym, code, down) => rfb.sendKey(keysym, code, down);
    switch (event.target.dataset.key) {
      case "ctrl-alt-del": rfb.sendCtrlAltDel(); break;
      case "escape": press(KeyTable.XK_Escape, "Escape"); break;
      case "tab": press(KeyTable.XK_Tab, "Tab"); break;
      case "super": press(KeyTable.XK_Super_L, "MetaLeft"); break;
      case "alt-tab":
        press(KeyTable.XK_Alt_L, "AltLeft", true);
        press(KeyTable.XK_Tab, "Tab");
        press(KeyTable.XK_Alt_L, "AltLeft", false);
        break;
      case "keyboard": showKeyboard(); return;
      default: return;
    }
    rfb.focus();
  });
}

// A phone shows its keyboard for a text field only; what is typed there goes to the desktop.
function showKeyboard() {
  let field = stage.querySelector(".catcher");
  if (!field) {
    field = document.createElement("textarea");
    field.className = "catcher hidden";
    field.autocapitalize = "off";
    field.addEventListener("beforeinput", (event) => {
      event.preventDefault();
      if (event.inputType === "deleteContentBackward") rfb.sendKey(KeyTable.XK_BackSpace, "Backspace");
      else if (event.inputType === "insertLineBreak") rfb.sendKey(KeyTable.XK_Return, "Enter");
      else for (const character of event.data ?? "") {
        const point = character.codePointAt(0);
        rfb.sendKey(point < 256 ? point : 0x1000000 | point, null);
      }
    });
    stage.append(field);
  }
  field.focus();
}

stay();
