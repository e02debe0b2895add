/** A DNS server over UDP that answers what it is told to (RFC 1035 §4): A records of one name, or an error. */
import { createSocket } from "node:dgram";
import { once } from "node:events";
import type { Teardown } from "./resources.ts";

const TYPE_A = 1;
const HEADER_BYTES = 12;
const NAME_ERROR = 3;
const SERVER_FAILURE = 2;

export interface DnsServer {
  /** `address:port`. */
  readonly address: string;
  /** IPv4 addresses of every name; `undefined`: it answers that it cannot; `"silent"`: it does not answer. */
  addresses: readonly string[] | undefined | "silent";
  /** Seconds. */
  ttl: number;
  readonly questions: number;
}

export async function startDns(t: Teardown, addresses: readonly string[]): Promise<DnsServer> {
  const socket = createSocket("udp4");
  let questions = 0;
  const dns = {
    address: "",
    addresses: addresses as DnsServer["addresses"],
    ttl: 1,
    get questions() {
      return questions;
    },
  };
  socket.on("message", (message, { port, address }) => {
    questions++;
    if (dns.addresses !== "silent") socket.send(answerTo(message, dns.addresses, dns.ttl), port, address);
  });
  socket.bind(0, "127.0.0.1");
  await once(socket, "listening");
  t.teardown(() => socket.close());
  dns.address = `127.0.0.1:${socket.address().port}`;
  return dns;
}

function answerTo(question: Buffer, addresses: readonly string[] | undefined, ttl: number): Buffer {
  // The name ends with an empty label; its type and class follow. What comes behind (EDNS) is not answered.
  const end = question.indexOf(0, HEADER_BYTES) + 5;
  const isA = question.readUInt16BE(end - 4) === TYPE_A;
  const records = isA ? (addresses ?? []) : [];
  const head = Buffer.alloc(HEADER_BYTES);
  question.copy(head, 0, 0, 2);
  const code = addresses === undefined ? SERVER_FAILURE : addresses.length === 0 ? NAME_ERROR : 0;
  head.writeUInt16BE(0x8180 | code, 2);
  head.writeUInt16BE(1, 4);
  head.writeUInt16BE(records.length, 6);
  return Buffer.concat([head, question.subarray(HEADER_BYTES, end), ...records.map((text) => recordOf(text, ttl))]);
}

function recordOf(address: string, ttl: number): Buffer {
  const record = Buffer.alloc(16);
  record.writeUInt16BE(0xc0_0c, 0); // the name of the question
  record.writeUInt16BE(TYPE_A, 2);
  record.writeUInt16BE(1, 4);
  record.writeUInt32BE(ttl, 6);
  record.writeUInt16BE(4, 10);
  record.set(address.split(".").map(Number), 12);
  return record;
}
