import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { repositoryRoot } from "../../scripts/linux/kernel-cache.ts";
import { DEVICE_DIVERGENCES } from "./device-divergences.ts";
import { DIVERGENCES } from "./divergences.ts";

/** First cells of all tables. */
const ROWS = readFileSync(join(repositoryRoot(), "docs", "divergences.md"), "utf8")
  .split("\n")
  .map((line) => /^\| (.*?) \| /.exec(line)?.[1]);

describe("divergences of the conformance suite", () => {
  for (const { row, linux, ours } of [...DIVERGENCES, ...DEVICE_DIVERGENCES])
    test(`"${row}" is a row of docs/divergences.md`, () => {
      assert(ROWS.includes(row), "the document has it");
      assert.notDeepEqual(linux, ours, "the kernels differ");
    });
});
