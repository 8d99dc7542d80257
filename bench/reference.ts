/** The yardstick in C, compiled when it is needed. @module */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** Operations per second by case ("map4K", "walk1G", ...), and the compiler's version. */
export type ReferenceRates = Readonly<Record<string, number>>;

const COMPILERS = ["cc", "gcc", "clang"];

/** Compiles and runs the loops of `reference/second-stage.c`; null when there is no C compiler. */
export function referenceRates(millisecondsPerCase: number): ReferenceRates | null {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-bench-"));
  try {
    // Compiled code lies in dist/bench; the C source stays where it is.
    const here = fileURLToPath(new URL(".", import.meta.url));
    const root = here.includes(`${join("dist", "bench")}`)
      ? join(here, "..", "..")
      : join(here, "..");
    const source = join(root, "bench", "reference", "second-stage.c");
    const program = join(folder, "second-stage");
    const options = ["-O2", "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-o", program, source];
    const compiler = COMPILERS.find((name) => spawnSync(name, options).status === 0);
    if (compiler === undefined) return null;
    const run = spawnSync(program, [String(millisecondsPerCase)], { encoding: "utf8" });
    if (run.status !== 0) throw new Error(`the C reference failed: ${run.stderr}`);
    return JSON.parse(run.stdout) as ReferenceRates;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
