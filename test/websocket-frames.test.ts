/** Where frames end, however the octets are cut; and who may open a WebSocket. */
import type { Writable } from "node:stream";
import fc from "fast-check";
import t from "tap";
import * as ws from "ws";
import { acceptFor, closeFrame, FrameTracker, isAllowed } from "../src/core/websocket.ts";

/** The types of `ws` leave out what reads and writes its frames. */
const { Receiver, Sender } = ws as unknown as {
  readonly Receiver: new (options: { isServer: boolean }) => Writable;
  readonly Sender: { frame(data: Buffer, options: object): Buffer[] };
};

interface Frame {
  readonly opcode: number;
  readonly masked: boolean;
  readonly length: number;
}

const frames = fc.array(
  fc.record<Frame>({
    opcode: fc.constantFrom(0, 1, 2, 9, 10),
    masked: fc.boolean(),
    length: fc.oneof(fc.nat(130), fc.constantFrom(0, 125, 126, 127, 65535, 65536), fc.nat(70_000)),
  }),
  { minLength: 1, maxLength: 12 },
);

/** As `ws` writes it. */
function octetsOf({ opcode, masked, length }: Frame): Buffer {
  const options = { fin: true, rsv1: false, opcode, mask: masked, readOnly: false };
  return Buffer.concat(Sender.frame(Buffer.alloc(length, 0xa5), options));
}

t.test("a boundary is where a frame ends, whatever the pieces", async () => {
  fc.assert(
    fc.property(frames, fc.array(fc.integer({ min: 1, max: 5000 }), { minLength: 1 }), (sequence, cuts) => {
      const octets = sequence.map(octetsOf);
      const ends = new Set<number>();
      let end = 0;
      for (const frame of octets) {
        end += frame.length;
        ends.add(end);
      }
      const all = Buffer.concat(octets);
      const tracker = new FrameTracker();
      for (let at = 0, i = 0; at < all.length; i++) {
        const piece = all.subarray(at, at + (cuts[i % cuts.length] ?? 1));
        at += tracker.read(piece);
        if (tracker.atBoundary !== ends.has(at)) return false;
      }
      const stepping = new FrameTracker();
      for (let at = 0; at < all.length; ) {
        at += stepping.read(all.subarray(at), true);
        if (!ends.has(at) || !stepping.atBoundary) return false;
      }
      const messages = sequence.filter(({ opcode }) => opcode < 8).length;
      return tracker.messageFrames === messages && stepping.messageFrames === messages && !tracker.sawClose;
    }),
  );
});

t.test("octets that are no frames: no exception, and each is read", async () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ minLength: 1, maxLength: 300 })), (pieces) => {
      const tracker = new FrameTracker();
      return pieces.every((piece) => tracker.read(Buffer.from(piece)) === piece.length);
    }),
  );
});

t.test("our close frames are understood, masked and not", async (t) => {
  for (const masked of [false, true]) {
    const frame = closeFrame(1008, "session ended", masked);
    const tracker = new FrameTracker();
    t.equal(tracker.read(frame), frame.length);
    t.ok(tracker.sawClose && tracker.atBoundary);
    const receiver = new Receiver({ isServer: masked });
    const concluded = new Promise((resolve) =>
      receiver.on("conclude", (code: number, reason: Buffer) => resolve([code, String(reason)])),
    );
    receiver.write(frame);
    t.same(await concluded, [1008, "session ended"]);
  }
});

t.test("the answer to a key is the one of RFC 6455", async (t) => {
  t.equal(acceptFor("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
});

t.test("origins: the host's own and those that are listed", async (t) => {
  const policy = { origins: new Set(["https://partner.example", "http://dev.example:3000"]) };
  const verdicts: [origin: string, authority: string, scheme: "http" | "https", allowed: boolean][] = [
    ["https://app.example", "app.example", "https", true],
    ["https://APP.example", "app.example", "https", true],
    ["https://app.example", "app.example:443", "https", true],
    ["https://app.example:443", "app.example", "https", true],
    ["https://app.example:8443", "app.example:8443", "https", true],
    ["http://app.example:8080", "app.example:8080", "http", true],
    ["https://app.example", "app.example", "http", true],
    ["http://app.example", "app.example", "https", false],
    ["https://app.example:8443", "app.example", "https", false],
    ["https://app.example.evil", "app.example", "https", false],
    ["https://evil-app.example", "app.example", "https", false],
    ["https://app.example@evil.example", "app.example", "https", false],
    ["https://app.example#evil", "app.example", "https", false],
    ["https://app.example/", "app.example", "https", false],
    ["null", "app.example", "https", false],
    ["", "app.example", "https", false],
    ["file://", "app.example", "https", false],
    ["https://partner.example", "app.example", "https", true],
    ["http://partner.example", "app.example", "https", false],
    ["http://dev.example:3000", "app.example", "https", true],
    ["https://[::1]:8443", "[::1]:8443", "https", true],
  ];
  for (const [origin, authority, scheme, allowed] of verdicts)
    t.equal(isAllowed(origin, policy, authority, scheme), allowed, `${origin} at ${scheme}://${authority}`);
});
