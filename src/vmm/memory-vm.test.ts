import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { failingHost } from "../../tests/support/failing-host.ts";
import { F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SHRINK, MFD_ALLOW_SEALING } from "../abi/uapi/fs.ts";
import { LINUX_REBOOT_CMD_KEXEC, LINUX_REBOOT_CMD_POWER_OFF } from "../abi/uapi/reboot.ts";
import { isKernelError } from "../base/errno.ts";
import { Prng } from "../base/prng.ts";
import { MIB, PAGE_SIZE } from "../base/units.ts";
import type { Host } from "../host/host.ts";
import {
  createSession,
  finish,
  preserveFd,
  retrieveFd,
  retrieveSession,
} from "../host/liveupdate.ts";
import { MappedMemory } from "../host/mapped-memory.ts";
import { MemfdRecord } from "../host/memfd-record.ts";
import { boot } from "../kernel/boot.ts";
import { RESTORES } from "../kernel/restores.ts";
import type { FileMapping } from "../kernel/vfs/file.ts";
import type { Process } from "../kernel/vfs/process.ts";
import { standardConfig } from "../machine/embedded/config.ts";
import { InProcessMachine } from "../machine/embedded/in-process.ts";
import type { KernelImage, KernelModule } from "../machine/machine.ts";
import { MemoryVm, type MemoryVmSpec } from "./memory-vm.ts";

const IMAGE: KernelImage = { name: "next", entry: "next", release: "2", restores: RESTORES };
const COMMAND_LINE = "liveupdate=on";
const SPEC: MemoryVmSpec = { name: "vm", memoryBytes: MIB, seed: 7, iommufd: false };
const PAGES = SPEC.memoryBytes / PAGE_SIZE;

/** Runs `kernels[i]` as the userspace of the i-th kernel, with a jump between each and the next. */
function runKernels(...kernels: ((host: Process) => unknown)[]): void {
  let number = 0;
  const module: KernelModule = {
    start(machine, parameters) {
      const host = boot(machine, parameters, { release: String(number) }).spawn();
      kernels[number++](host);
      if (number === kernels.length) return host.reboot(LINUX_REBOOT_CMD_POWER_OFF);
      host.kexecFileLoad("/boot/next", null, COMMAND_LINE);
      return host.reboot(LINUX_REBOOT_CMD_KEXEC);
    },
  };
  const config = standardConfig({
    memoryBytes: 96 * MIB,
    nics: 0,
    framesPerSecond: 0,
    installed: [IMAGE],
  });
  const machine = new InProcessMachine(config, { modules: () => module });
  machine.run(module, { commandLine: COMMAND_LINE, kho: null });
  assert.equal(number, kernels.length);
}

/** Creates a VM and keeps what it is told of its mapping: the way in for damage. */
function createSpied(host: Host, spec: MemoryVmSpec): { vm: MemoryVm; memory: MappedMemory } {
  let mapping: FileMapping | undefined;
  const vm = MemoryVm.create(host, spec, (made) => {
    mapping = made;
  });
  assert.ok(mapping);
  return { vm, memory: new MappedMemory(mapping) };
}

function preserveAll(host: Host, vm: MemoryVm, without: readonly "iommufd"[] = []): number {
  const device = host.open("/dev/liveupdate", 0);
  const session = createSession(host, device, vm.name);
  host.close(device);
  vm.preserve(session, without)();
  vm.pause()();
  return session;
}

function retrieve(host: Host, name = "vm"): number {
  return retrieveSession(host, host.open("/dev/liveupdate", 0), name);
}

/** Another mapping of a VM's memory, out of its session. */
function mapMemory(host: Host, session: number, spec: MemoryVmSpec): MappedMemory {
  return new MappedMemory(host.mmap(retrieveFd(host, session, 1n), 0, spec.memoryBytes));
}

function verifyAll(vm: MemoryVm): void {
  while (vm.verify());
  assert.equal(vm.verifiedBytes, vm.spec.memoryBytes);
}

describe("a VM that is memory", () => {
  it("fills all of its memory, and writes it over and over, each page compared first", () => {
    runKernels((host) => {
      const { vm, memory } = createSpied(host, SPEC);
      const first = memory.bytes(0, SPEC.memoryBytes).slice();
      for (let page = 0; page < PAGES; page++)
        assert.ok(
          first.subarray(page * PAGE_SIZE, (page + 1) * PAGE_SIZE).some((byte) => byte !== 0),
        );
      for (let i = 0; i < 10; i++) assert.equal(vm.step(), true);
      assert.equal(vm.writes, 640);
      assert.equal(vm.damagedPages, 0);
      // 640 writes into 256 pages: all of them at least twice.
      for (let page = 0; page < PAGES; page++)
        assert.notDeepEqual(
          memory.bytes(page * PAGE_SIZE, PAGE_SIZE),
          first.subarray(page * PAGE_SIZE, (page + 1) * PAGE_SIZE),
        );
    });
  });

  it("does not write while it is paused", () => {
    runKernels((host) => {
      const { vm, memory } = createSpied(host, SPEC);
      vm.step();
      vm.pause()();
      const before = memory.bytes(0, SPEC.memoryBytes).slice();
      assert.equal(vm.step(), false);
      assert.deepEqual(memory.bytes(0, SPEC.memoryBytes), before);
      vm.resume();
      assert.equal(vm.step(), true);
      assert.notDeepEqual(memory.bytes(0, SPEC.memoryBytes), before);
    });
  });

  it("goes through three jumps, writing before, between and after, with every byte as it was", () => {
    const steps = (vm: MemoryVm) => {
      for (let i = 0; i < 7; i++) vm.step();
    };
    const next = (writes: number, isLast: boolean) => (host: Host) => {
      const device = host.open("/dev/liveupdate", 0);
      const session = retrieveSession(host, device, "vm");
      const vm = MemoryVm.restore(host, session, "vm");
      assert.equal(vm.isRunning, false);
      assert.equal(vm.writes, writes);
      vm.resume();
      steps(vm);
      verifyAll(vm);
      assert.deepEqual(vm.damages, []);
      finish(host, session);
      host.close(session);
      if (isLast) return vm.destroy();
      const outgoing = createSession(host, device, vm.name);
      vm.preserve(outgoing, [])();
      // The session is there and the guest runs on: only the pause ends its writing.
      steps(vm);
      vm.pause()();
    };
    runKernels(
      (host) => {
        const vm = MemoryVm.create(host, SPEC);
        steps(vm);
        preserveAll(host, vm);
      },
      next(448, false),
      next(3 * 448, false),
      next(5 * 448, true),
    );
  });

  it("finds a wrong bit in any byte, tells the first ones to the byte and counts all", () => {
    // As many pages as a page has bytes: each place in a page is met once.
    const spec = { ...SPEC, memoryBytes: PAGE_SIZE * PAGE_SIZE };
    runKernels(
      (host) => {
        const vm = MemoryVm.create(host, spec);
        for (let i = 0; i < 70; i++) vm.step();
        preserveAll(host, vm);
      },
      (host) => {
        const session = retrieve(host);
        const vm = MemoryVm.restore(host, session, "vm");
        const memory = mapMemory(host, session, spec);
        const prng = new Prng(1);
        const at = (page: number) => page * PAGE_SIZE + ((page * 1021) % PAGE_SIZE);
        const spoiled = Array.from({ length: PAGE_SIZE }, (_, page) => {
          const byte = memory.bytes(at(page), 1);
          const expected = byte[0];
          byte[0] ^= 1 << prng.below(8);
          return { offsetBytes: at(page), expected, found: byte[0] };
        });
        verifyAll(vm);
        assert.deepEqual(vm.damages, spoiled.slice(0, 16));
        assert.equal(vm.damagedPages, spoiled.length);
      },
    );
  });

  it("finds pages that were lost, exchanged, or are as they were a round before", () => {
    const spoil: Record<string, (memory: MappedMemory) => void> = {
      lost: (memory) => memory.bytes(5 * PAGE_SIZE, PAGE_SIZE).fill(0),
      exchanged: (memory) => {
        // The same template, so that nothing but the stamp is another.
        const [one, other] = [5, 66].map((page) => memory.bytes(page * PAGE_SIZE, PAGE_SIZE));
        const kept = one.slice();
        one.set(other);
        other.set(kept);
      },
    };
    for (const [name, spoilMemory] of Object.entries(spoil))
      runKernels(
        (host) => preserveAll(host, MemoryVm.create(host, SPEC)),
        (host) => {
          const session = retrieve(host);
          const vm = MemoryVm.restore(host, session, "vm");
          spoilMemory(mapMemory(host, session, SPEC));
          verifyAll(vm);
          assert.equal(vm.damagedPages, name === "lost" ? 1 : 2, name);
          assert.equal(Math.floor(vm.damages[0].offsetBytes / PAGE_SIZE), 5, name);
        },
      );
    runKernels((host) => {
      const { vm, memory } = createSpied(host, SPEC);
      const old = memory.bytes(5 * PAGE_SIZE, PAGE_SIZE).slice();
      vm.step();
      memory.write(5 * PAGE_SIZE, old);
      // The first round ends with the fourth step; the fifth comes to the page again.
      for (let i = 0; i < 4; i++) vm.step();
      assert.deepEqual(
        vm.damages.map(({ offsetBytes }) => Math.floor(offsetBytes / PAGE_SIZE)),
        [5],
      );
    });
  });

  it("finds a damage that it writes over before verify() has come to it", () => {
    runKernels(
      (host) => preserveAll(host, MemoryVm.create(host, SPEC)),
      (host) => {
        const session = retrieve(host);
        const vm = MemoryVm.restore(host, session, "vm");
        mapMemory(host, session, SPEC).bytes(9 * PAGE_SIZE + 100, 1)[0] ^= 1;
        vm.resume();
        vm.step();
        assert.deepEqual(
          vm.damages.map(({ offsetBytes }) => offsetBytes),
          [9 * PAGE_SIZE + 100],
        );
        verifyAll(vm);
        assert.equal(vm.damagedPages, 1, "it is healed, and told once");
      },
    );
  });

  it("takes its iommufd along, or leaves it behind when told to", () => {
    for (const without of [[], ["iommufd"]] as const)
      runKernels(
        (host) => {
          const vm = MemoryVm.create(host, { ...SPEC, iommufd: true });
          assert.deepEqual(
            vm.resources().map(({ kind }) => kind),
            ["memory", "state", "iommufd"],
          );
          preserveAll(host, vm, without);
        },
        (host) => {
          const session = retrieve(host);
          const vm = MemoryVm.restore(host, session, "vm");
          assert.equal(vm.spec.iommufd, without.length === 0);
          assert.equal(vm.resources().length, 3 - without.length);
          verifyAll(vm);
          finish(host, session);
        },
      );
  });

  it("has its iommufd again when an update that would have left it behind was rolled back", () => {
    runKernels(
      (host) => {
        const vm = MemoryVm.create(host, { ...SPEC, iommufd: true });
        host.close(preserveAll(host, vm, ["iommufd"]));
        vm.unpreserve();
        vm.resume();
        vm.step();
        preserveAll(host, vm);
      },
      (host) => assert.equal(MemoryVm.restore(host, retrieve(host), "vm").spec.iommufd, true),
    );
  });

  it("preserve() fails with EINVAL when memory or state are to be left behind", () => {
    runKernels((host) => {
      const vm = MemoryVm.create(host, SPEC);
      const session = createSession(host, host.open("/dev/liveupdate", 0), "vm");
      for (const kind of ["memory", "state"] as const)
        assert.throws(() => vm.preserve(session, [kind]), { code: "EINVAL" });
    });
  });

  it("create() fails with EINVAL for what a VM cannot be", () => {
    const wrong: Partial<Record<keyof MemoryVmSpec, unknown>>[] = [
      ...["", 7].map((name) => ({ name })),
      ...[0, -4096, 4095, 4096.5, Number.NaN, 2 ** 60].map((memoryBytes) => ({ memoryBytes })),
      ...[-1, 2 ** 32, 0.5, "1"].map((seed) => ({ seed })),
      { iommufd: "yes" },
    ];
    runKernels((host) => {
      const before = accounts(host);
      for (const change of wrong)
        assert.throws(
          () => MemoryVm.create(host, { ...SPEC, ...change } as MemoryVmSpec),
          { code: "EINVAL" },
          JSON.stringify(change),
        );
      assert.deepEqual(accounts(host), before);
    });
  });

  it("restore() fails with EIO and leaves nothing open when the session holds something else", () => {
    const good = { format: "holdfast-memory-vm-v1", spec: SPEC, writes: 3 };
    const F_SEALS = F_SEAL_SHRINK | F_SEAL_GROW;
    const cases: [name: string, state: unknown, seals: number, message: RegExp][] = [
      ["format", { ...good, format: "v0" }, F_SEALS, /format v0/],
      ["no object", null, F_SEALS, /format undefined/],
      ["name", { ...good, spec: { ...SPEC, name: "other" } }, F_SEALS, /holds "other"/],
      ["no spec", { ...good, spec: undefined }, F_SEALS, /name undefined/],
      ["seed", { ...good, spec: { ...SPEC, seed: -1 } }, F_SEALS, /seed -1/],
      ["writes", { ...good, writes: -1 }, F_SEALS, /writes -1/],
      ["size", { ...good, spec: { ...SPEC, memoryBytes: 2 * MIB } }, F_SEALS, /1048576 bytes/],
      ["seals", good, F_SEAL_SHRINK, /seals 0x2 instead of 0x6/],
    ];
    const named = (name: string, state: unknown) => {
      const { spec } = (state ?? {}) as { spec?: MemoryVmSpec };
      return spec?.name === "vm" ? { ...(state as object), spec: { ...spec, name } } : state;
    };
    runKernels(
      (host) => {
        const device = host.open("/dev/liveupdate", 0);
        for (const [name, state, seals] of cases) {
          const session = createSession(host, device, name);
          const memory = host.memfdCreate("memory", MFD_ALLOW_SEALING);
          host.ftruncate(memory, SPEC.memoryBytes);
          host.fcntl(memory, F_ADD_SEALS, seals);
          preserveFd(host, session, memory, 1n);
          const record = host.memfdCreate("state", MFD_ALLOW_SEALING);
          MemfdRecord.create(host, record, PAGE_SIZE, named(name, state));
          preserveFd(host, session, record, 2n);
        }
        createSession(host, device, "empty");
      },
      (host) => {
        const device = host.open("/dev/liveupdate", 0);
        for (const [name, , , message] of cases) {
          const session = retrieveSession(host, device, name);
          const before = accounts(host);
          assert.throws(() => MemoryVm.restore(host, session, name), { code: "EIO", message });
          assert.deepEqual(accounts(host), before, name);
        }
        const empty = retrieveSession(host, device, "empty");
        assert.throws(() => MemoryVm.restore(host, empty, "empty"), { code: "ENOENT" });
      },
    );
  });

  it("leaves nothing behind when any call fails while it is created or restored", () => {
    const spec = { ...SPEC, iommufd: true };
    runKernels(
      (host) => {
        const vm = failEachCall(host, (faulty) => MemoryVm.create(faulty, spec), {
          calls: ["memfdCreate", "ftruncate", "fallocate", "fcntl", "mmap", "pwrite", "open"],
        });
        const before = accounts(host);
        MemoryVm.create(host, spec).destroy();
        assert.deepEqual(accounts(host), before);
        preserveAll(host, vm);
      },
      (host) => {
        const session = retrieve(host);
        const vm = failEachCall(host, (faulty) => MemoryVm.restore(faulty, session, "vm"), {
          calls: ["ioctl", "fstat", "fcntl", "mmap", "pread"],
        });
        verifyAll(vm);
        assert.equal(vm.damagedPages, 0);
      },
    );
  });
});

/** What must be the same again after something was undone. */
function accounts(host: Process): unknown {
  return { descriptors: host.openDescriptors, mappings: host.mappingCount };
}

/** Fails one call after the other until `action` succeeds. @param expected - calls that must have been among them */
function failEachCall<T>(
  host: Process,
  action: (faulty: Host) => T,
  expected: { readonly calls: readonly string[] },
): T {
  const before = accounts(host);
  const tried: string[] = [];
  for (;;) {
    const faulty = failingHost(host, tried.length);
    try {
      const result = action(faulty.host);
      assert.equal(faulty.stop(), null);
      for (const call of expected.calls) assert.ok(tried.includes(call), `${call} among ${tried}`);
      return result;
    } catch (error) {
      if (!isKernelError(error, "EIO")) throw error;
      const call = faulty.stop();
      assert.ok(call !== null, error.message);
      tried.push(call);
      assert.deepEqual(accounts(host), before, `after call ${tried.length}, ${call}`);
    }
  }
}
