import pino from "pino";

/** Octets gathered before a write. */
const BATCH_BYTES = 64 * 1024;
/** How long a line waits at the most. */
const FLUSH_INTERVAL_MS = 250;
/** Lines that a blocked output keeps waiting; beyond this they are lost, not the process. */
const MAX_WAITING_BYTES = 16 * 1024 * 1024;
/** How long the end waits for an output that is blocked. */
const END_TIMEOUT_MS = 2_000;
const LINE_FEED = 0x0a;
/** UTF-8 octets of one UTF-16 code unit, at the most. */
const MAX_BYTES_PER_UNIT = 3;

/**
 * Lines to a file descriptor, many to a write. They are copied into one buffer at once: gathered as strings they were
 * thousands of live objects that every garbage collection went through, at a third of the CPU of a request.
 */
export class BatchedOutput {
  readonly #output: ReturnType<typeof pino.destination>;
  readonly #timer: NodeJS.Timeout;
  #batch = Buffer.allocUnsafeSlow(BATCH_BYTES);
  #used = 0;
  readonly #onDropped: (lines: number) => void;
  /** Nobody reads any more: pino's destination takes everything from then on, and says nothing. */
  #broken = false;
  #endsByMs = Infinity;

  /** @param onDropped told how many lines were lost, because the output was blocked or closed. */
  constructor(fd: number, onDropped: (lines: number) => void = () => {}) {
    this.#onDropped = onDropped;
    this.#output = pino.destination({
      fd,
      sync: false,
      contentMode: "buffer",
      maxWrite: BATCH_BYTES,
      maxLength: MAX_WAITING_BYTES,
      retryEAGAIN: () => performance.now() < this.#endsByMs,
    } as Parameters<typeof pino.destination>[0] & object);
    this.#output.on("drop", (octets: unknown) => this.#dropped(octets as Buffer));
    this.#output.on("error", () => {
      this.#broken = true;
    });
    this.#timer = setInterval(() => this.#send(), FLUSH_INTERVAL_MS).unref();
  }

  write(line: string): void {
    const mostBytes = line.length * MAX_BYTES_PER_UNIT;
    if (this.#used + mostBytes > BATCH_BYTES) this.#send();
    if (mostBytes > BATCH_BYTES) this.#pass(Buffer.from(line));
    else this.#used += this.#batch.write(line, this.#used);
  }

  /** Writes what is left and waits for it, but not for ever; nothing is gathered after this. */
  end(): void {
    clearInterval(this.#timer);
    this.#send();
    this.#endsByMs = performance.now() + END_TIMEOUT_MS;
    try {
      this.#output.flushSync();
    } catch {
      // Blocked all the time, or closed: there is nowhere left to say so.
    }
  }

  #send(): void {
    if (this.#used === 0) return;
    this.#pass(this.#batch.subarray(0, this.#used));
    this.#batch = Buffer.allocUnsafeSlow(BATCH_BYTES);
    this.#used = 0;
  }

  /** The types know `write` with a text only; with `contentMode: "buffer"` it takes octets. */
  #pass(octets: Buffer): void {
    if (this.#broken) this.#dropped(octets);
    else this.#output.write(octets as unknown as string);
  }

  #dropped(octets: Buffer): void {
    let lines = 0;
    for (const octet of octets) if (octet === LINE_FEED) lines++;
    this.#onDropped(lines);
  }
}
