const READ_PROBLEMS: Readonly<Record<string, string>> = {
  ENOENT: "is not there",
  ENOTDIR: "is not there",
  EISDIR: "is a folder",
  EACCES: "may not be read by this user",
  EPERM: "may not be read by this user",
};

/** Why a file could not be read, in words that go on after its name. */
export function readProblem(error: unknown): string {
  const code = error instanceof Error && "code" in error ? String(error.code) : String(error);
  return READ_PROBLEMS[code] ?? `cannot be read (${code})`;
}
