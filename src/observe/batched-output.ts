import { write, writeSync } from "node:fs";

/** Octets gathered before a write. */
const BATCH_BYTES = 256 * 1024;
/** How long a line waits at the most. */
const FLUSH_INTERVAL_MS = 250;
/** Lines that a blocked output keeps waiting; beyond this they are lost, not the process. */
const MAX_WAITING_BYTES = 16 * 1024 * 1024;
/** After a write that was not possible: a pipe that does not block is full, or a disk is. */
const RETRY_MS = 10;
/** How long the end waits for an output that is blocked. */
const END_TIMEOUT_MS = 2_000;
/** UTF-8 octets of one UTF-16 code unit, at the most. */
const MAX_BYTES_PER_UNIT = 3;
const LINE_FEED = 0x0a;

/**
 * Lines to a file descriptor, many to a write. They are copied into one buffer at once: gathered as strings they were
 * thousands of live objects that every garbage collection went through, at a third of the CPU of a request.
 *
 * Nothing that befalls the output ends the process or holds up its end. (pino's destination, sonic-boom 5, ends it when a
 * disk is full, and its `flushSync` then never returns.)
 */
export class BatchedOutput {
  readonly #fd: number;
  readonly #onDropped: (lines: number) => void;
  readonly #timer: NodeJS.Timeout;
  #batch: Buffer = Buffer.allocUnsafeSlow(BATCH_BYTES);
  #used = 0;
  /** One that was written and can be filled again: memory outside of the heap is dear to get and to give back. */
  #spare: Buffer | undefined;
  /** Batches that are not written, or not as a whole. */
  readonly #waiting: Buffer[] = [];
  #waitingBytes = 0;
  /** A write of the first one is under way, or will be tried again. */
  #writing = false;
  /** Nobody reads any more. */
  #closed = false;
  #onDrained: (() => void) | undefined;

  /** @param onDropped told how many lines were lost, because the output was blocked or closed. */
  constructor(fd: number, onDropped: (lines: number) => void = () => {}) {
    this.#fd = fd;
    this.#onDropped = onDropped;
    this.#timer = setInterval(() => this.#send(), FLUSH_INTERVAL_MS).unref();
  }

  write(line: string): void {
    const mostBytes = line.length * MAX_BYTES_PER_UNIT;
    if (this.#used + mostBytes > BATCH_BYTES) this.#send();
    if (mostBytes > BATCH_BYTES) this.#pass(Buffer.from(line));
    else this.#used += this.#batch.write(line, this.#used);
  }

  /** @param lines whole ones, which nobody changes any more: they are not copied. */
  writeLines(lines: Buffer): void {
    this.#send();
    this.#pass(lines);
  }

  /** Writes what is left and waits for it, but not for ever; nothing is gathered after this. */
  async end(): Promise<void> {
    clearInterval(this.#timer);
    this.#send();
    if (!this.#writing) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#onDrained = resolve;
    const timer = setTimeout(resolve, END_TIMEOUT_MS);
    await promise;
    clearTimeout(timer);
    this.#closed = true;
    this.#dropWaiting();
  }

  /** Writes what is left at once, as far as it goes, because the process ends now. */
  flush(): void {
    this.#send();
    try {
      // The first one may be on its way already.
      for (const octets of this.#waiting.splice(this.#writing ? 1 : 0)) writeSync(this.#fd, octets);
    } catch {
      // There is nowhere left to say so.
    }
  }

  #send(): void {
    if (this.#used === 0) return;
    this.#pass(this.#batch.subarray(0, this.#used));
    this.#batch = this.#spare ?? Buffer.allocUnsafeSlow(BATCH_BYTES);
    this.#spare = undefined;
    this.#used = 0;
  }

  #pass(octets: Buffer): void {
    if (this.#closed || this.#waitingBytes + octets.length > MAX_WAITING_BYTES) {
      this.#onDropped(linesIn(octets));
      return;
    }
    this.#waiting.push(octets);
    this.#waitingBytes += octets.length;
    if (!this.#writing) this.#writeNext();
  }

  #writeNext(): void {
    const [octets] = this.#waiting;
    this.#writing = octets !== undefined;
    if (octets === undefined) this.#onDrained?.();
    else write(this.#fd, octets, (error, written) => this.#wrote(error, octets, written));
  }

  #wrote(error: NodeJS.ErrnoException | null, octets: Buffer, written: number): void {
    if (this.#closed) return;
    if (error?.code === "EPIPE" || error?.code === "EBADF") {
      this.#closed = true;
      this.#dropWaiting();
      this.#writeNext();
    } else if (error) {
      setTimeout(() => this.#writeNext(), RETRY_MS).unref();
    } else {
      this.#waitingBytes -= written;
      if (written === octets.length) this.#reuse(this.#waiting.shift());
      else this.#waiting[0] = octets.subarray(written);
      this.#writeNext();
    }
  }

  #reuse(octets: Buffer | undefined): void {
    if (octets?.buffer.byteLength === BATCH_BYTES) this.#spare = Buffer.from(octets.buffer);
  }

  #dropWaiting(): void {
    for (const octets of this.#waiting.splice(0)) this.#onDropped(linesIn(octets));
    this.#waitingBytes = 0;
  }
}

function linesIn(octets: Buffer): number {
  let lines = 0;
  for (let at = octets.indexOf(LINE_FEED); at !== -1; at = octets.indexOf(LINE_FEED, at + 1)) lines++;
  return lines;
}
