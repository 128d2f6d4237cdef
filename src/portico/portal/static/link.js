// How the link to a desktop is. A question that the server answers behind all it has said before (a fence, rfbproto) tells how old
// the picture is; from that the picture's quality is chosen, and it is noticed that nothing comes any more.

import RFB from "./vendor/novnc/core/rfb.js";

const PULSE_MS = 1000; // between two looks at what there is to ask
const IDLE_MS = 5000; // a desktop that rests is asked so rarely
const DEAD_MS = 5000; // asked, and nothing at all heard for so long: the network has gone
const REQUEST = 2 ** 31, BLOCK_BEFORE = 1;
const FENCE_HEAD = 9; // kind, padding, flags, length
const LITTLE_BYTES = 200; // since the last question: nothing that tells how the link is under load

// noVNC answers the server's fences, and asks none of its own.
export class Desktop extends RFB {
  onAnswer = () => {};

  get canAsk() { return this._supportsFence && this._rfbConnectionState === "connected"; }

  ask() { RFB.messages.clientFence(this._sock, REQUEST + BLOCK_BEFORE, "portico"); }

  _handleServerFenceMsg() {
    const size = FENCE_HEAD - 1; // the kind has been read
    if (this._sock.rQwait("fence", size, 1)) return false;
    const head = this._sock.rQpeekBytes(size);
    if (head[3] & 0x80) return super._handleServerFenceMsg(); // it asks
    if (this._sock.rQwait("fence", size + head[7], 1)) return false;
    this._sock.rQskipBytes(size + head[7]);
    this.onAnswer();
    return true;
  }
}

// Chooses the quality, 0 to 9, from how much later than at best the picture comes. It falls at once and rises with patience:
// the more so the sooner a rise had to be taken back.
export class Quality {
  static LEVELS = [0, 1, 2, 4, 6, 8];
  static LATE_MS = 350;
  static VERY_LATE_MS = 1200;
  static GOOD_MS = 200;
  static BEST_OF = 60; // answers
  static PATIENCE = [5, 80]; // good answers in a row until it rises, at first and at most
  static REGRET = 15; // answers after a rise within which a fall takes it back

  constructor() {
    this.at = Quality.LEVELS.indexOf(6);
    this.patience = Quality.PATIENCE[0];
    this.lags = [];
    this.good = 0;
    this.sinceRise = Infinity;
    this.settling = 0;
  }

  get level() { return Quality.LEVELS[this.at]; }

  // Takes one answer; isLoaded: pictures came meanwhile.
  take(lag, isLoaded) {
    this.lags = [...this.lags.slice(1 - Quality.BEST_OF), lag];
    this.sinceRise += 1;
    if (this.settling > 0) { this.settling -= 1; return; } // still pictures of before
    const late = lag - Math.min(...this.lags);
    if (late > Quality.LATE_MS && this.at > 0) {
      if (this.sinceRise <= Quality.REGRET) this.patience = Math.min(this.patience * 2, Quality.PATIENCE[1]);
      this.move(late > Quality.VERY_LATE_MS ? -2 : -1);
    } else if (late > Quality.GOOD_MS) {
      this.good = 0;
    } else if (isLoaded && (this.good += 1) >= this.patience && this.at < Quality.LEVELS.length - 1) {
      if (this.sinceRise > 4 * Quality.REGRET) this.patience = Math.max(this.patience / 2, Quality.PATIENCE[0]);
      this.move(+1);
      this.sinceRise = 0;
    }
  }

  move(steps) {
    this.at = Math.max(0, Math.min(Quality.LEVELS.length - 1, this.at + steps));
    this.good = 0;
    this.settling = 1;
  }
}

// Watches one connection until stop(): onLag(lag, isLoaded) after each answer, onSilent() once no answer is late, onDead() at the end.
export function watch(rfb, socket, { onLag, onSilent, onDead }) {
  let heard = performance.now(), asked = 0, last = 0, bytes = 0, told = false, isTouched = false;

  function ask() {
    if (asked || !rfb.canAsk) return;
    asked = last = performance.now();
    rfb.ask();
  }

  rfb.onAnswer = () => {
    const now = performance.now(), lag = now - asked;
    asked = 0;
    told = false;
    onLag(lag, bytes > LITTLE_BYTES);
    bytes = 0;
  };
  const hear = (event) => { heard = performance.now(); bytes += event.data.byteLength; };
  const touch = () => { isTouched = true; };

  function look() {
    const now = performance.now();
    const silent = asked ? now - Math.max(asked, heard) : 0;
    if (silent > DEAD_MS) { stop(); onDead(); return; }
    if (silent > DEAD_MS / 2 && !told) { told = true; onSilent(); }
    if (document.hidden) return;
    if (bytes > LITTLE_BYTES || isTouched || now - last > IDLE_MS) { isTouched = false; ask(); }
  }

  function stop() {
    clearInterval(timer);
    socket.removeEventListener("message", hear);
    for (const kind of ["keydown", "pointerdown"]) removeEventListener(kind, touch, true);
    removeEventListener("online", ask);
  }

  socket.addEventListener("message", hear);
  for (const kind of ["keydown", "pointerdown"]) addEventListener(kind, touch, true);
  addEventListener("online", ask);
  const timer = setInterval(look, PULSE_MS);
  return stop;
}
