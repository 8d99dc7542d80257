import assert from "node:assert/strict";
import { test } from "node:test";
import { isKernelError } from "../base/errno.ts";
import { decodeJournal, JOURNAL_FORMAT, type Journal } from "./journal.ts";

const JOURNAL: Journal = {
  format: JOURNAL_FORMAT,
  update: 3,
  fromRelease: "a-1",
  toRelease: "a-2",
  rebootAtNs: 6,
  vms: [
    { name: "vm0", ownerUid: null, pausedAtNs: 0 },
    { name: "vm1", ownerUid: 0xffff_fffe, pausedAtNs: 1234.5 },
  ],
  phases: [
    { update: 3, name: "load", startNs: 1, endNs: 1 },
    { update: 3, name: "pause", startNs: 2, endNs: 5 },
  ],
  userData: { mine: [1] },
};

/** As it comes out of a record. */
function copy(): Record<string, unknown> {
  return JSON.parse(JSON.stringify(JOURNAL)) as Record<string, unknown>;
}

/** The journal with one field, "phases.1.name", set; undefined takes it away. */
function withField(path: string, value: unknown): unknown {
  const journal = copy();
  const keys = path.split(".");
  const last = keys.pop() ?? "";
  let at = journal;
  for (const key of keys) at = at[key] as Record<string, unknown>;
  assert.ok(last in at, `${path} is a field`);
  at[last] = value;
  return JSON.parse(JSON.stringify(journal));
}

test("decodeJournal() reads what an agent wrote, and leaves out what it does not know", () => {
  assert.deepEqual(decodeJournal(copy()), JOURNAL);
  assert.deepEqual(decodeJournal({ ...copy(), later: 1 }), JOURNAL);
  assert.equal(decodeJournal(withField("userData", undefined)).userData, null);
});

test("decodeJournal() reads the first format, which knew neither owners nor the reboot", () => {
  const { rebootAtNs: _, ...first } = {
    ...JOURNAL,
    format: "holdfast-journal-v1",
    vms: JOURNAL.vms.map(({ name, pausedAtNs }) => ({ name, pausedAtNs })),
  };
  assert.deepEqual(decodeJournal(JSON.parse(JSON.stringify(first))), {
    ...JOURNAL,
    rebootAtNs: null,
    vms: JOURNAL.vms.map((vm) => ({ ...vm, ownerUid: null })),
  });
});

test("decodeJournal() fails with EIO naming the field when one is wrong", () => {
  const notCounts = [undefined, null, "3", 0, -1, 1.5, 2 ** 53, [3], true];
  const notTimes = [undefined, null, "1", -1, [1], {}, true];
  const timesOrNull = notTimes.filter((value) => value !== null);
  const notUids = [undefined, "0", -1, 1.5, 0xffff_ffff, [0], true];
  const notStrings = [undefined, null, 7, ["vm0"], {}];
  const notLists = [undefined, null, 1, "vm0", { length: 0 }];
  const notObjects = [null, 1, "vm0", []];
  const wrong: [path: string, values: readonly unknown[]][] = [
    ["format", [undefined, null, 1, "", "holdfast-journal-v3"]],
    ["update", notCounts],
    ["fromRelease", notStrings],
    ["toRelease", notStrings],
    ["rebootAtNs", timesOrNull],
    ["vms", notLists],
    ["vms.1", notObjects],
    ["vms.0.name", [...notStrings, ""]],
    ["vms.1.name", ["vm0"]],
    ["vms.0.ownerUid", notUids],
    ["vms.1.pausedAtNs", notTimes],
    ["phases", notLists],
    ["phases.0", notObjects],
    ["phases.1.update", notCounts],
    ["phases.1.name", notStrings],
    ["phases.1.startNs", notTimes],
    ["phases.1.endNs", [...notTimes, 1]],
  ];
  for (const [path, values] of wrong) {
    const field = `journal.${path.replace(/\.(\d)/g, "[$1]")} is `;
    for (const value of values)
      assert.throws(
        () => decodeJournal(withField(path, value)),
        (error) => isKernelError(error, "EIO") && error.message.includes(field),
        `${path}: ${JSON.stringify(value)}`,
      );
  }
  for (const value of [null, undefined, 1, "x", []])
    assert.throws(
      () => decodeJournal(value),
      (error) => isKernelError(error, "EIO") && error.message.includes("journal is "),
    );
});

test("decodeJournal() quotes only the beginning of what it refuses", () => {
  assert.throws(
    () => decodeJournal(withField("update", "x".repeat(10_000))),
    (error) => isKernelError(error, "EIO") && error.message.length < 200,
  );
});

test("decodeJournal() fails with EIO when what is in a field's place is nested deeper than the stack is", () => {
  const deep = JSON.parse(`${"[".repeat(100_000)}${"]".repeat(100_000)}`) as unknown;
  for (const value of [deep, { ...copy(), vms: [deep] }, { ...copy(), update: deep }])
    assert.throws(
      () => decodeJournal(value),
      (error) => isKernelError(error, "EIO"),
    );
});

test("decodeJournal() does not keep the agent for long, however many VMs a journal names", () => {
  const vms = Array.from({ length: 100_000 }, (_, i) => ({
    ...JOURNAL.vms[0],
    name: `vm${i}`,
  }));
  const start = performance.now();
  assert.equal(decodeJournal({ ...copy(), vms }).vms.length, vms.length);
  assert.ok(performance.now() - start < 3000);
});
