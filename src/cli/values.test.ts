import assert from "node:assert/strict";
import { test } from "node:test";
import { GIB, KIB, MIB, TIB } from "../base/units.ts";
import { UsageError } from "./usage-error.ts";
import { parseCount, parseSize } from "./values.ts";

const isUsage = (message: RegExp) => (error: unknown) =>
  error instanceof UsageError && message.test(error.message);

test("parseSize() reads bytes and binary units, however they are written", () => {
  for (const [text, bytes] of [
    ["4096", 4096],
    ["4096B", 4096],
    ["8K", 8 * KIB],
    ["256M", 256 * MIB],
    ["256m", 256 * MIB],
    ["256MiB", 256 * MIB],
    ["256MB", 256 * MIB],
    ["3G", 3 * GIB],
    ["1T", TIB],
    ["007K", 7 * KIB],
  ] as const)
    assert.equal(parseSize("--memory", text, 1, TIB), bytes, text);
});

test("parseSize() refuses what is no size, naming the option, the value and the way out", () => {
  for (const text of [
    "",
    "M",
    "1.5G",
    "-1M",
    "1 M",
    "1P",
    "0x10",
    "1e3",
    "NaN",
    "1MM",
    "256Mi",
    "1K1",
  ])
    assert.throws(
      () => parseSize("--memory", text, 1, TIB),
      isUsage(/^--memory .*: not a size; write it as 256M/),
      text,
    );
});

test("parseSize() takes its limits and nothing beyond them", () => {
  assert.equal(parseSize("--memory", "8M", 8 * MIB, TIB), 8 * MIB);
  assert.equal(parseSize("--memory", "1T", 8 * MIB, TIB), TIB);
  for (const text of ["8388607", "0", "2T", "99999999999999999999999T"])
    assert.throws(
      () => parseSize("--memory", text, 8 * MIB, TIB),
      isUsage(/must be from 8 MiB to 1 TiB$/),
      text,
    );
});

test("parseCount() takes whole numbers within its limits", () => {
  assert.equal(parseCount("--vms", "1", 1, 16), 1);
  assert.equal(parseCount("--vms", "16", 1, 16), 16);
  assert.equal(parseCount("--seed", "4294967295", 0, 2 ** 32 - 1), 2 ** 32 - 1);
  for (const text of [
    "0",
    "17",
    "",
    " 1",
    "1.0",
    "+1",
    "-1",
    "1e1",
    "0x1",
    "one",
    "999999999999999999",
  ])
    assert.throws(
      () => parseCount("--vms", text, 1, 16),
      isUsage(/^--vms .*: must be a whole number from 1 to 16$/),
      text,
    );
});
