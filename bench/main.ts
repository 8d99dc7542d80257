/**
 * `npm run bench`: every promise about speed and size, as a ratio with something measured beside it.
 *
 * Exit status 1 when one is missed.
 * @module
 */

import { missingQemu } from "../tests/qemu/rig.ts";
import { blackoutRows } from "./blackout.ts";
import { handoverRows } from "./handover-size.ts";
import { inspectRows } from "./inspect.ts";
import { linuxRows } from "./linux.ts";
import { residentMemory, updateRows } from "./live-update.ts";
import { mapRows, unitRows, walkRows } from "./page-tables.ts";
import { referenceRates } from "./reference.ts";
import { accessRows } from "./register-accesses.ts";
import { printSection, type Row } from "./report.ts";

/** For each case of the C reference. */
const REFERENCE_MS = 300;

const noQemu = missingQemu();
if (noQemu !== null)
  console.error(
    `\n*** SKIPPED: everything on QEMU's hardware, (g) and a column of (e): ${noQemu}\n`,
  );
console.error("measuring blackouts, and the loops in C ...");
// First what needs processes of their own: Linux does not let one fork that has a terabyte mapped.
const blackout = await blackoutRows(noQemu === null);
const accesses = noQemu === null ? await accessRows() : [];
const linux = await linuxRows();
const reference = referenceRates(REFERENCE_MS);
const sections: [title: string, measure: () => Row[]][] = [
  ["(a) page tables: entries mapped and unmapped, beside C", () => mapRows(reference)],
  [
    "(b) translations of random addresses, beside a walk in C",
    () => [...walkRows(reference), ...unitRows(reference)],
  ],
  ["(c) a live update of one VM: preserve + freeze + boot + restore + swap", updateRows],
  [
    "(d) a handover beside guest memory and page tables (root and context tables are such, as in pkernfs), of its budget",
    handoverRows,
  ],
  ["(e) the blackout of the live machine, medians", () => blackout],
  ["(f) holdfast inspect: 1 GiB, 10,000 preserved extents, found by search", inspectRows],
];
if (noQemu === null)
  sections.push(["(g) register accesses of an update of two VMs on QEMU", () => accesses]);
if (linux !== null)
  sections.push([
    "(h) live update on Linux in QEMU: 1 GiB of guest memory, an emulated processor",
    () => linux,
  ]);

let ok = true;
for (const [title, measure] of sections) {
  console.error(`measuring ${title.slice(0, 3)} ...`);
  ok = printSection(title, measure()) && ok;
}
console.log(`\nresident memory at the end: ${residentMemory()}`);
process.exitCode = ok ? 0 : 1;
