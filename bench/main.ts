/**
 * `npm run bench`: every promise about speed and size, as a ratio with something measured beside it.
 *
 * Exit status 1 when one is missed.
 * @module
 */
import { residentMemory, updateRows } from "./live-update.ts";
import { mapRows, unitRows, walkRows } from "./page-tables.ts";
import { referenceRates } from "./reference.ts";
import { printSection } from "./report.ts";

const reference = referenceRates(300);
let ok = printSection("(a) page tables: entries mapped and unmapped", mapRows(reference));
ok =
  printSection("(b) translations: random addresses walked", [
    ...walkRows(reference),
    ...unitRows(reference),
  ]) && ok;
ok = printSection("(c) a live update of one VM, by the size of its memory", updateRows()) && ok;
console.log(`  resident memory ${residentMemory()}`);
process.exitCode = ok ? 0 : 1;
