// The wall: a small live picture of each desktop. Only those on the screen are connected, at the coarsest quality, and none can be
// touched: the gateway drops all input of a viewer. Tiles come and go as desktops do.

import RFB from "./vendor/novnc/core/rfb.js";

const LOOK_S = 5;
const AGAIN_S = 3;
const tiles = document.querySelector("[data-tiles]");
const links = new Map(); // tile → its connection

function connect(tile) {
  const url = new URL(tile.dataset.stream, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const said = tile.querySelector("[data-link]");
  const picture = tile.querySelector(".picture");
  picture.replaceChildren();
  const rfb = new RFB(picture, url.href, { shared: true, wsProtocols: ["binary"] });
  links.set(tile, rfb);
  rfb.viewOnly = true;
  rfb.scaleViewport = true;
  rfb.background = "#0c1016";
  rfb.qualityLevel = 1;
  rfb.compressionLevel = 9;
  rfb.addEventListener("connect", () => { said.textContent = ""; });
  rfb.addEventListener("disconnect", () => {
    if (links.get(tile) !== rfb) return;
    said.textContent = "trying again…";
    setTimeout(() => { if (links.get(tile) === rfb && tile.isConnected) connect(tile); }, AGAIN_S * 1000);
  });
}

function leave(tile) {
  const rfb = links.get(tile);
  links.delete(tile);
  rfb?.disconnect();
}

const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting && !links.has(target)) connect(target);
    else if (!isIntersecting && links.has(target)) leave(target);
  }
}, { rootMargin: "100px" });

async function look() {
  if (document.hidden) return;
  const answer = await fetch(location.href, { redirect: "manual" });
  if (!answer.ok) return;
  const fresh = [...new DOMParser().parseFromString(await answer.text(), "text/html").querySelectorAll(".tile")];
  for (const tile of [...tiles.children]) {
    if (!fresh.some((one) => one.id === tile.id)) { seen.unobserve(tile); leave(tile); tile.remove(); }
  }
  for (const tile of fresh.filter((one) => !document.getElementById(one.id))) {
    const own = document.importNode(tile, true);
    tiles.append(own);
    seen.observe(own);
  }
  document.querySelector("[data-none]").hidden = tiles.children.length > 0;
}

for (const tile of tiles.children) seen.observe(tile);
setInterval(() => { look().catch(() => {}); }, LOOK_S * 1000);
