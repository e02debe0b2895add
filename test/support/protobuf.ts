/** Reads OTLP's protobuf encoding, as far as spans need it: opentelemetry-proto, trace/v1/trace.proto. */

type Field = readonly [number: number, value: bigint | Buffer];

/** The fields of a message, in order. Varints and 64-bit numbers come as numbers, everything else as octets. */
function fieldsOf(message: Buffer): Field[] {
  const fields: Field[] = [];
  let at = 0;
  const varint = (): bigint => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const octet = message[at++] ?? 0;
      value |= BigInt(octet & 0x7f) << shift;
      if (octet < 0x80) return value;
    }
  };
  while (at < message.length) {
    const tag = Number(varint());
    const wireType = tag & 7;
    if (wireType === 0) fields.push([tag >> 3, varint()]);
    else if (wireType === 1) {
      fields.push([tag >> 3, message.readBigUInt64LE(at)]);
      at += 8;
    } else if (wireType === 2) {
      const length = Number(varint());
      fields.push([tag >> 3, message.subarray(at, at + length)]);
      at += length;
    } else if (wireType === 5) {
      fields.push([tag >> 3, BigInt(message.readUInt32LE(at))]);
      at += 4;
    } else throw new Error(`wire type ${wireType}`);
  }
  return fields;
}

const all = (message: Buffer, number: number): Buffer[] =>
  fieldsOf(message).flatMap(([field, value]) => (field === number && value instanceof Buffer ? [value] : []));
const octets = (message: Buffer, number: number): Buffer => all(message, number)[0] ?? Buffer.alloc(0);
const numberIn = (message: Buffer, number: number): bigint => {
  const [, value] = fieldsOf(message).find(([field]) => field === number) ?? [];
  return typeof value === "bigint" ? value : 0n;
};

/** `AnyValue`: text, a truth value or a whole number. */
function anyValueOf(value: Buffer): unknown {
  const [[kind, content] = [0, 0n]] = fieldsOf(value);
  if (kind === 1) return content.toString();
  if (kind === 2) return content === 1n;
  return Number(content);
}

const attributesOf = (message: Buffer, number: number) =>
  Object.fromEntries(all(message, number).map((pair) => [octets(pair, 1).toString(), anyValueOf(octets(pair, 2))]));

/** The spans of an `ExportTraceServiceRequest`. */
export function spansIn(request: Buffer) {
  return all(request, 1).flatMap((resourceSpans) => {
    const resource = attributesOf(octets(resourceSpans, 1), 1);
    const spans = all(resourceSpans, 2).flatMap((scopeSpans) => all(scopeSpans, 2));
    return spans.map((span) => ({
      traceId: octets(span, 1).toString("hex"),
      spanId: octets(span, 2).toString("hex"),
      parentSpanId: octets(span, 4).toString("hex") || undefined,
      name: octets(span, 5).toString(),
      kind: Number(numberIn(span, 6)),
      startNs: numberIn(span, 7),
      endNs: numberIn(span, 8),
      status: Number(numberIn(octets(span, 15), 3)),
      attributes: attributesOf(span, 9),
      resource,
    }));
  });
}
