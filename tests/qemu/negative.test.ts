/**
 * What must not get through: DMA of a device that nobody preserved, and a handover that is not what it says.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { contextEntryAddress, rootEntryAddress } from "../../src/abi/vtd/root-context.ts";
import { PAGE_SIZE } from "../../src/base/units.ts";
import type { Ram } from "../../src/machine/physical-memory.ts";
import { FILLED } from "../support/edu-user.ts";
import { runHost } from "./demo-host.ts";
import { skipReason } from "./rig.ts";

const EDU_IMAGE = new URL(
  `./edu-image.${import.meta.url.endsWith(".ts") ? "ts" : "js"}`,
  import.meta.url,
);
/** The first NIC: on the bus that its root port got first. */
const NIC_SOURCE_ID = 0x100;

/** Addresses of pages that hold only `byte`. */
function pagesOf(ram: Ram, byte: number): number[] {
  const wanted = Buffer.alloc(PAGE_SIZE, byte);
  const pages: number[] = [];
  for (const { start, lengthBytes } of ram.ranges)
    for (let pa = start; pa < start + lengthBytes; pa += PAGE_SIZE)
      if (ram.load8(pa) === byte && wanted.equals(ram.view(pa, PAGE_SIZE))) pages.push(pa);
  return pages;
}

describe("on QEMU's q35", { skip: skipReason() }, () => {
  test("an edu's transfer into a file completes when there is no update", async (t) => {
    const { machine } = await runHost(t, {
      updates: 0,
      framesPerSecond: 1000,
      image: EDU_IMAGE,
    });
    assert.deepEqual(pagesOf(machine.ram, FILLED), []);
  });

  test("an edu that nobody preserved writes nothing after the jump, though its transfer was under way", async (t) => {
    let atJump: number[] = [];
    const { problems, machine, nics, logged } = await runHost(t, {
      updates: 1,
      framesPerSecond: 1000,
      image: EDU_IMAGE,
      onHandover: ({ ram }) => {
        atJump = pagesOf(ram, FILLED);
      },
    });
    assert.deepEqual(problems, [], logged.join("\n"));
    // 200 ms after the jump, twice the time to its end, the page is as it was.
    assert.equal(atJump.length, 1);
    assert.deepEqual(pagesOf(machine.ram, FILLED), atJump);
    for (const nic of nics) assert.ok(nic.withoutKernel > 0, nic.name);
  });

  test("a context entry of a preserved device that goes in the jump is found out", async (t) => {
    let isZapped = false;
    const { problems, logged } = await runHost(t, {
      updates: 1,
      framesPerSecond: 1000,
      onHandover: ({ ram }, rootTable) => {
        // The cold boot that follows has an update of its own.
        if (isZapped) return;
        isZapped = true;
        const root = ram.load32(rootEntryAddress(rootTable, NIC_SOURCE_ID));
        const entry = contextEntryAddress(root - (root % PAGE_SIZE), NIC_SOURCE_ID);
        assert.equal(ram.load32(entry) & 1, 1, "the NIC had a context entry");
        ram.retract64(entry);
      },
    });
    assert.ok(problems.length > 0);
    assert.match(logged.join("\n"), /cold boot/);
  });
});
