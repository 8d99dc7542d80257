import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { skipUnless } from "../../tests/support/skip.ts";
import { KernelError } from "../base/errno.ts";
import { MIB } from "../base/units.ts";
import type { FileMapping } from "../kernel/vfs/file.ts";
import type { Ffi } from "./ffi.ts";
import { MemoryMapping } from "./memory-mapping.ts";
import { linuxTests } from "./test-rig.ts";

const linux = process.platform === "linux" ? null : `needs Linux, not ${process.platform}`;
const linuxTest = linuxTests(skipUnless("mappings of Linux", linux));

function memfd(ffi: Ffi, lengthBytes: number): number {
  const fd = ffi.memfdCreate("memory", 1);
  ffi.ftruncate(fd, lengthBytes);
  return fd;
}

/** Whether something is mapped there. */
function isMapped(address: bigint): boolean {
  return readFileSync("/proc/self/maps", "utf8")
    .split("\n")
    .some((line) => {
      const [start, end] = line
        .split(" ")[0]
        .split("-")
        .map((hex) => BigInt(`0x${hex || "0"}`));
      return address >= start && address < end;
    });
}

linuxTest("an array that outlives its mapping reaches neither the file nor a crash", ({ ffi }) => {
  const fd = memfd(ffi, 4 * MIB);
  const mapping = new MemoryMapping(ffi, fd, 0, 4 * MIB);
  const { bytes } = mapping.pieces[0];
  bytes.fill(7);
  mapping.unmap();
  mapping.unmap();
  assert.equal(bytes[4 * MIB - 1], 0);
  bytes.fill(9);
  const read = new Uint8Array(1);
  ffi.pread(fd, read, 100);
  assert.equal(read[0], 7);
  // The file is not held by what is left: nothing maps it.
  assert.ok(!readFileSync("/proc/self/maps", "utf8").includes("memfd:memory"));
  assert.throws(() => mapping.adviseHugePages(), { code: "EINVAL" });
  ffi.close(fd);
});

linuxTest("the place of a mapping is free when its last array is gone", async ({ ffi }) => {
  setFlagsFromString("--expose-gc");
  const collect: () => void = runInNewContext("gc");
  const fd = memfd(ffi, 4096);
  const addresses: bigint[] = [];
  let kept: FileMapping["pieces"][number] | null = null;
  (() => {
    for (let i = 0; i < 8; i++) {
      const mapping = new MemoryMapping(ffi, fd, 0, 4096);
      addresses.push(mapping.address);
      if (i === 7) kept = mapping.pieces[0];
      mapping.unmap();
    }
  })();
  assert.ok(addresses.every(isMapped));
  for (let i = 0; i < 50 && addresses.filter(isMapped).length > 1; i++) {
    collect();
    await sleep(1);
  }
  assert.deepEqual(addresses.map(isMapped), [...new Array(7).fill(false), true]);
  assert.ok(kept !== null);
  ffi.close(fd);
});

linuxTest("a mapping that cannot be shown is not left behind", ({ ffi }) => {
  const fd = memfd(ffi, 4096);
  const maps = () => readFileSync("/proc/self/maps", "utf8").includes("memfd:memory");
  const failing: Ffi = {
    ...ffi,
    view() {
      assert.ok(maps());
      throw new KernelError("ENOMEM", "view", "no view");
    },
  };
  assert.throws(() => new MemoryMapping(failing, fd, 0, 4096), { code: "ENOMEM" });
  assert.ok(!maps());
  ffi.close(fd);
});

linuxTest("adviseHugePages() marks the mapping for the kernel", ({ ffi }) => {
  const fd = memfd(ffi, 4 * MIB);
  const mapping = new MemoryMapping(ffi, fd, 0, 4 * MIB);
  const flags = () => {
    const smaps = readFileSync("/proc/self/smaps", "utf8");
    return /^VmFlags:.*$/m.exec(smaps.slice(smaps.indexOf("memfd:memory")))?.[0] ?? "";
  };
  assert.ok(!/\bhg\b/.test(flags()), flags());
  mapping.adviseHugePages();
  assert.ok(/\bhg\b/.test(flags()), flags());
  mapping.unmap();
  ffi.close(fd);
});
