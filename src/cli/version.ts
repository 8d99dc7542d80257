/** The version of this package. @module */
import { readFileSync } from "node:fs";

/** From package.json, wherever this file was compiled to; "unknown" when there is none. */
export function version(): string {
  for (const up of ["../..", "../../.."]) {
    try {
      const text = readFileSync(new URL(`${up}/package.json`, import.meta.url), "utf8");
      const manifest = JSON.parse(text) as { name?: string; version?: string };
      if (manifest.name === "holdfast") return String(manifest.version);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    }
  }
  return "unknown";
}
