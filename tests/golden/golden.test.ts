/**
 * Handovers of released formats, replayed on fresh machines: a kernel of today takes each with all that is in it, or
 * refuses it by the name of the format that it does not know.
 * @module
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { O_RDWR } from "../../src/abi/uapi/fs.ts";
import { LINUX_REBOOT_CMD_POWER_OFF } from "../../src/abi/uapi/reboot.ts";
import { Agent } from "../../src/agent/agent.ts";
import type { Host } from "../../src/host/host.ts";
import { boot } from "../../src/kernel/boot.ts";
import type { Kernel } from "../../src/kernel/kernel.ts";
import { RESTORES } from "../../src/kernel/restores.ts";
import { DeterministicMachine } from "../../src/machine/embedded/deterministic.ts";
import type { KernelModule } from "../../src/machine/machine.ts";
import { bootNicGuest } from "../../src/vmm/nic-guest.ts";
import { VirtualMachine } from "../../src/vmm/virtual-machine.ts";
import { IMAGE, MOUNT_POINT } from "../support/failure-rig.ts";
import { HandoverProbe } from "../support/handover-probe.ts";
import { type Golden, readGolden, replayGolden } from "./blob.ts";

/** Compiling copies no blobs. */
const DIRECTORY = fileURLToPath(
  new URL(import.meta.url.endsWith(".ts") ? "." : "../../../tests/golden/", import.meta.url),
);
const BLOBS = readdirSync(DIRECTORY).filter((name) => name.endsWith(".bin.gz"));
const BLOB_BYTES_MAX = 200 * 1024;

function load(name: string): {
  golden: Golden;
  machine: DeterministicMachine;
  lines: string[];
  use: (userspace: (kernel: Kernel) => never) => void;
} {
  const blob = readFileSync(`${DIRECTORY}/${name}`);
  assert.ok(blob.length < BLOB_BYTES_MAX, `${blob.length} bytes`);
  const { golden, pages } = readGolden(blob);
  const lines: string[] = [];
  let userspace: ((kernel: Kernel) => never) | null = null;
  const module: KernelModule = {
    start(machine, parameters) {
      const kernel = boot(machine, parameters, { release: "golden-reader" });
      assert.ok(userspace !== null);
      return userspace(kernel);
    },
  };
  const machine = new DeterministicMachine(golden.config, {
    seed: 1,
    modules: () => module,
    onSerialLine: (line) => lines.push(line),
  });
  replayGolden(machine, golden, pages);
  const use = (program: (kernel: Kernel) => never) => {
    userspace = program;
    assert.deepEqual(machine.run(module, golden.parameters), { kind: "powered-off", status: 0 });
  };
  return { golden, machine, lines, use };
}

function sha256OfFile(host: Host, fd: number, lengthBytes: number): string {
  const mapping = host.mmap(fd, 0, lengthBytes);
  const hash = createHash("sha256");
  for (const { bytes } of mapping.pieces) hash.update(Buffer.from(bytes));
  mapping.unmap();
  return hash.digest("hex");
}

describe("golden handovers", () => {
  it("cover all formats of today", () => {
    const known = new Set(BLOBS.flatMap((name) => load(name).golden.contents.formats));
    for (const format of RESTORES)
      assert.ok(known.has(format), `no golden handover has "${format}": make one (make.ts)`);
  });

  for (const name of BLOBS) {
    it(`${name} is taken, with all that is in it`, () => {
      const { golden, lines, use } = load(name);
      use((kernel) => {
        assert.deepEqual(lines, [], "the kernel has nothing to complain about");
        assert.equal(kernel.kho.previousRelease, golden.contents.release);
        assert.equal(kernel.kho.kexecCount, 1);
        assert.equal(kernel.liveUpdate.liveupdateNumber, 1);
        checkContents(golden, kernel);
        return kernel.spawn().reboot(LINUX_REBOOT_CMD_POWER_OFF);
      });
    });

    it(`${name} is refused by name where a format of it is not known`, () => {
      const { golden, machine } = load(name);
      const probe = new HandoverProbe(machine, golden.parameters, IMAGE);
      assert.equal(probe.show(golden.parameters).kind, "accepted");
      for (const format of golden.contents.formats) {
        const places = findText(machine, golden, format);
        assert.ok(places.length > 0, `"${format}" is in it`);
        for (const at of places) {
          // As the next version would call itself.
          const last = at + format.length - 1;
          const digit = machine.ram.load8(last);
          machine.ram.store8(last, digit + 1);
          const result = probe.show(golden.parameters);
          machine.ram.store8(last, digit);
          assert.equal(result.kind, "refused", `${format} at ${at}: ${JSON.stringify(result)}`);
          if (result.kind !== "refused") continue;
          const unknown = format.slice(0, -1) + String.fromCharCode(digit + 1);
          assert.ok(result.message.includes(`"${unknown}"`), result.message);
        }
      }
      assert.equal(probe.show(golden.parameters).kind, "accepted");
    });
  }
});

/** Retrieves everything, compares it, and lets go of it. */
function checkContents(golden: Golden, kernel: Kernel): void {
  const { vm, file } = golden.contents;
  const host = kernel.spawn();
  const taken = Agent.takeOver(host, () => {});
  assert.ok(taken !== null);
  assert.equal(taken.journal.update, 1);
  assert.equal(taken.journal.fromRelease, golden.contents.release);
  assert.deepEqual(
    taken.journal.vms.map((one) => one.name),
    [vm.name],
  );
  host.mkdir(MOUNT_POINT);
  host.mount("guests", MOUNT_POINT, "memfs", "");
  const memory = host.open(`${MOUNT_POINT}/${vm.name}`, O_RDWR);
  assert.equal(host.fstat(memory).sizeBytes, vm.memoryBytes);
  assert.equal(sha256OfFile(host, memory, vm.memoryBytes), vm.sha256, "guest memory");
  host.close(memory);

  const fd = host.open(`${MOUNT_POINT}/${file.path}`, O_RDWR);
  const mapping = host.mmap(fd, 0, 4096);
  const text = Buffer.from(mapping.pieces[0].bytes.subarray(0, file.text.length)).toString();
  assert.equal(text, file.text);
  mapping.unmap();
  host.close(fd);

  const { vms, failures } = taken.agent.restore(taken.journal, {
    open: (session) => VirtualMachine.restore(host, session, bootNicGuest),
    running: (one) => {
      const { received, lost, corrupt } = one.guest.counters;
      assert.deepEqual({ received, lost, corrupt }, { received: vm.received, lost: 0, corrupt: 0 });
      assert.equal(one.guest.counters.dirtied, vm.dirtied);
      assert.equal(one.guestBytesMoved, 0);
    },
    runOthers: () => {},
  });
  assert.deepEqual(failures, []);
  assert.equal(vms.length, 1);
  assert.deepEqual(vms[0].guest.audit(), []);
  vms[0].destroy();
  assert.deepEqual(kernel.leaks(), { pages: 0, pins: 0, domains: 0 });
}

/** Addresses at which a text with a NUL behind it lies in the pages of a handover. */
function findText(machine: DeterministicMachine, golden: Golden, text: string): number[] {
  const found: number[] = [];
  const bytes = Buffer.alloc(4096);
  for (const pa of golden.pages) {
    machine.ram.read(pa, bytes);
    for (let at = bytes.indexOf(`${text}\0`); at >= 0; at = bytes.indexOf(`${text}\0`, at + 1))
      found.push(pa + at);
  }
  return found;
}
