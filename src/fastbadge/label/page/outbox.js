// Clicks on their way to the server, in order, each until it is acknowledged. They are kept in the
// browser's storage, every one under a key of its own so that two tabs cannot overwrite each other's;
// what both send is one click to the server, by its request.

const RETRY_SECONDS = [0.5, 1, 2, 4, 8];
const TIMEOUT_SECONDS = 20;

// Also where the page came over plain HTTP, which has no crypto.randomUUID.
export function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

export class Refused extends Error {
  constructor(status, words) {
    super(words);
    this.status = status;
  }
}

// What the server answers; Refused if it does not want to; another error if it does not answer.
export async function ask(path, body) {
  const response = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
    keepalive: body !== undefined, // what is on its way arrives though the page is closed
    signal: AbortSignal.timeout(TIMEOUT_SECONDS * 1000),
  });
  if (response.ok) return response.json();
  throw new Refused(response.status, (await response.text()).trim());
}

export class Outbox {
  // answered(entry, answer), refused(entry, words) and changed(trouble) are called as it goes;
  // `n` says how many items the page would like to have in hand.
  constructor({ n, answered, refused, changed }) {
    Object.assign(this, { n, answered, refused, changed });
    this.prefix = `fastbadge:${location.pathname}:click:`;
    this.sent = 0; // clicks there ever were, to tell what was asked before one
    this.failures = 0;
    this.busy = false;
    this.entries = this.stored();
    addEventListener("online", () => this.send());
  }

  get size() {
    return this.entries.length;
  }

  // Items whose answer the server may not know yet.
  items() {
    return new Set(this.entries.map((entry) => entry.body.item));
  }

  // Sends it when its turn comes; the name of the request.
  add(path, body) {
    this.sent += 1;
    const request = uuid();
    const order = `${Date.now()}`.padStart(15, "0") + `${this.sent}`.padStart(6, "0");
    const entry = { key: `${this.prefix}${order}-${request}`, path, body: { ...body, request } };
    this.entries.push(entry);
    try {
      localStorage.setItem(entry.key, JSON.stringify({ path, body: entry.body }));
    } catch {
      // Storage that is full or switched off: kept as long as the page is open.
    }
    this.send();
    return request;
  }

  stored() {
    const entries = [];
    try {
      for (const key of Object.keys(localStorage).filter((key) => key.startsWith(this.prefix))) {
        entries.push({ key, ...JSON.parse(localStorage.getItem(key)) });
      }
    } catch {
      return [];
    }
    return entries.sort((a, b) => (a.key < b.key ? -1 : 1));
  }

  async send() {
    if (this.busy) return;
    this.busy = true;
    clearTimeout(this.timer);
    while (this.entries.length) {
      const [entry] = this.entries;
      let answer, refusal;
      try {
        answer = await ask(entry.path, { ...entry.body, n: this.n() });
      } catch (error) {
        // Refused for good, unless it is for want of access, or by another project's server.
        if (!(error instanceof Refused) || ![400, 413, 415].includes(error.status)) {
          this.busy = false;
          const wait = RETRY_SECONDS[Math.min(this.failures++, RETRY_SECONDS.length - 1)];
          this.timer = setTimeout(() => this.send(), wait * 1000);
          this.changed(error);
          return;
        }
        refusal = error;
      }
      this.failures = 0;
      this.entries.shift();
      try {
        localStorage.removeItem(entry.key);
      } catch {
        // As above.
      }
      if (refusal) this.refused(entry, refusal.message);
      else this.answered(entry, answer);
      this.changed(null);
    }
    this.busy = false;
  }
}
