import { renderDashboard } from "./model.ts";
import { overview } from "./overview.ts";
import { runtime } from "./runtime.ts";
import { sessions } from "./sessions.ts";
import { store } from "./store.ts";

/** Paths of the dashboards and their text. */
export function renderDashboards(): Record<string, string> {
  const all = [overview, sessions, store, runtime];
  return Object.fromEntries(all.map((one) => [`grafana/dashboards/${one.uid}.json`, renderDashboard(one)]));
}
