/**
 * Makes the golden handover of the present formats: `tsx tests/golden/make.ts tests/golden/handover-N.bin.gz`.
 *
 * Never run it for a file that exists: a golden handover is what a released kernel has left, and kernels of today must
 * take it or refuse it by name. When a `compatible` string changes, make a file with the next number, and keep the
 * old ones.
 * @module
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { existsSync, writeFileSync } from "node:fs";
import { O_CREAT, O_RDWR } from "../../src/abi/uapi/fs.ts";
import { Agent } from "../../src/agent/agent.ts";
import { MIB } from "../../src/base/units.ts";
import type { Host } from "../../src/host/host.ts";
import { RESTORES } from "../../src/kernel/restores.ts";
import { type Booted, FailureRig, IMAGE, MOUNT_POINT, TARGET } from "../support/failure-rig.ts";
import { captureGolden, type GoldenContents } from "./blob.ts";

const MEMORY_BYTES = 8 * MIB + 3 * 4096;
const FILE = {
  path: `images/${"a-name-of-several-slots-".repeat(6)}`,
  text: "What a kernel has left, another one reads.",
};

/** Thrown out of the jump: there is no next kernel. */
class Captured extends Error {}

const path = process.argv[2];
assert.ok(path !== undefined, "usage: tsx tests/golden/make.ts FILE");
assert.ok(!existsSync(path), `${path} exists, and golden handovers are never made again`);

let vm: GoldenContents["vm"] | null = null;
const rig = new FailureRig({ seed: 1, vms: 1, memoryBytes: MEMORY_BYTES, userspace });
rig.machine.onJump((_ram, { parameters }) => {
  assert.ok(vm !== null);
  const contents = { release: IMAGE.release, formats: RESTORES, vm, file: FILE };
  const note = "Made by tests/golden/make.ts; see there.";
  const blob = captureGolden(rig.machine, rig.config, parameters, note, contents);
  writeFileSync(path, blob);
  console.log(`${path}: ${blob.length} bytes`);
  throw new Captured();
});
assert.throws(() => rig.run(), Captured);

function userspace({ host }: Booted): never {
  const agent = Agent.start(host, () => {});
  rig.mount(host);
  writeFile(host);
  const machine = rig.createVm(host, 0);
  rig.runVms(host, [machine], 8);
  // The wire falls silent, so that memory is what its hash says when the jump comes.
  machine.guest.shutDown();
  for (let idle = 0; idle < 3; idle = machine.step() ? 0 : idle + 1) host.sleep(200_000);
  rig.checkVm(machine, "before the jump");
  const { received, dirtied } = machine.guest.counters;
  vm = {
    name: machine.name,
    memoryBytes: MEMORY_BYTES,
    sha256: sha256OfFile(host, `${MOUNT_POINT}/${machine.name}`, MEMORY_BYTES),
    received,
    dirtied,
  };
  return agent.update([machine], TARGET);
}

function writeFile(host: Host): void {
  host.mkdir(`${MOUNT_POINT}/images`);
  const fd = host.open(`${MOUNT_POINT}/${FILE.path}`, O_RDWR | O_CREAT);
  host.ftruncate(fd, 4096);
  host.fallocate(fd, 0, 0, 4096);
  const mapping = host.mmap(fd, 0, 4096);
  mapping.pieces[0].bytes.set(Buffer.from(FILE.text));
  mapping.unmap();
  host.close(fd);
}

function sha256OfFile(host: Host, file: string, lengthBytes: number): string {
  const fd = host.open(file, O_RDWR);
  const mapping = host.mmap(fd, 0, lengthBytes);
  const hash = createHash("sha256");
  for (const { bytes } of mapping.pieces) hash.update(Buffer.from(bytes));
  mapping.unmap();
  host.close(fd);
  return hash.digest("hex");
}
