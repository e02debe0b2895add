import type { PolicyDecision } from "../core/exchange.ts";
import { waitsForPage } from "../core/navigation.ts";
import type { RequestHead } from "../core/request-head.ts";
import type { Route } from "../core/routes.ts";
import type { Resolution } from "./resolver.ts";

/** What a route makes of the session that was found. */
export function decide(route: Route, resolution: Resolution, method: string, head: RequestHead): PolicyDecision {
  if (route.session === "none") return "anonymous";
  if (resolution.outcome === "unavailable") return route.onOutage === "anonymous" ? "anonymous" : "outage";
  if (resolution.session?.user) return "identified";
  if (route.session === "optional") return "anonymous";
  return route.loginRedirect !== undefined && isNavigation(method, head) ? "login-redirect" : "denied";
}

/** Whether a person waits for a page that can be asked for again. Scripts get 401: they cannot follow a redirect to a login form. */
export function isNavigation(method: string, head: RequestHead): boolean {
  return (method === "GET" || method === "HEAD") && waitsForPage(head.secFetchMode, head.accept);
}
