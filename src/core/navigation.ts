/**
 * Whether a person waits for a page, and not a script for data. Browsers say so (Fetch Metadata); what does not say it is
 * asked what it accepts.
 */
export function waitsForPage(secFetchMode: string | undefined, accept: string | undefined): boolean {
  if (secFetchMode !== undefined) return secFetchMode === "navigate";
  return accept?.includes("text/html") ?? false;
}
