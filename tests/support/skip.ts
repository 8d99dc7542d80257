/** Tests that need what a machine may lack: skipped loudly, and in CI, which installs all that can be, not at all. @module */

/**
 * For the `skip` of tests: false, or what is missing, which is printed, too.
 *
 * @param what - that they run on
 * @param reason - why they cannot; null when they can
 * @throws {Error} in CI: there they must run
 */
export function skipUnless(what: string, reason: string | null): string | false {
  if (reason !== null && process.env["CI"] === "true")
    throw new Error(`the tests on ${what} must run in CI: ${reason}`);
  return skipLoudly(what, reason);
}

/** As {@link skipUnless}, of what no CI can install: the right to do something. */
export function skipUnlessRoot(what: string): string | false {
  if (process.platform !== "linux") return skipLoudly(what, "needs Linux");
  return skipLoudly(what, process.getuid?.() === 0 ? null : "only root may");
}

function skipLoudly(what: string, reason: string | null): string | false {
  if (reason === null) return false;
  console.error(`SKIPPED: tests on ${what}: ${reason}`);
  return reason;
}
