/** Clients for the tests: node:http for ordinary requests, a bare socket for the others. */
import { once } from "node:events";
import { request as httpRequest, type OutgoingHttpHeaders } from "node:http";
import { connect, type Socket } from "node:net";

export interface Reply {
  readonly status: number;
  readonly headers: NodeJS.Dict<string | string[]>;
  readonly rawHeaders: readonly string[];
  readonly body: string;
  /** `Set-Cookie` fields. */
  readonly setCookie: readonly string[];
}

export interface Ask {
  readonly method?: string;
  readonly headers?: OutgoingHttpHeaders | readonly string[];
  readonly body?: string | Buffer;
  /** In place of the URL's, octet by octet. */
  readonly path?: string;
}

/** One request on a connection of its own. Rejects when the response is cut short. */
export function ask(url: string, { method = "GET", headers = {}, body, path }: Ask = {}): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const req = httpRequest(
      url,
      { method, headers: headers as OutgoingHttpHeaders, agent: false, ...(path && { path }) },
      async (res) => {
        try {
          let text = "";
          for await (const piece of res.setEncoding("utf8")) text += piece;
          resolve({
            status: res.statusCode ?? 0,
            headers: res.headers,
            rawHeaders: res.rawHeaders,
            body: text,
            setCookie: res.headers["set-cookie"] ?? [],
          });
        } catch (error) {
          reject(error);
        }
      },
    );
    req.on("error", reject);
    req.end(body);
  });
}

/** `name=value` of a `Set-Cookie` field. */
export function cookiePair(setCookie: string | undefined): string {
  return (setCookie ?? "").split(";", 1)[0] ?? "";
}

/** Sends octets as they are and collects what comes back until the other side closes, or until `enough` says so. */
export async function raw(port: number, octets: string | Buffer, enough?: (text: string) => boolean): Promise<string> {
  const socket = connect(port, "127.0.0.1");
  await once(socket, "connect");
  socket.write(octets, "latin1");
  return collect(socket, enough);
}

export async function collect(socket: Socket, enough: (text: string) => boolean = () => false): Promise<string> {
  let text = "";
  socket.on("error", () => {});
  for await (const piece of socket.setEncoding("latin1")) {
    text += piece;
    if (enough(text)) break;
  }
  socket.destroy();
  return text;
}

/** Waits for something that happens soon after an event that cannot be awaited; fails the test by its timeout. */
export async function until<T>(look: () => T | Promise<T>): Promise<NonNullable<T>> {
  for (;;) {
    const seen = await look();
    if (seen) return seen;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
