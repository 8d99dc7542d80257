/**
 * A whole deterministic host for tests that make steps of an update fail: machine, kernels, agent, VMs, and what must
 * hold whatever fails.
 *
 * A test gives the userspace of each boot as a function; it ends in a jump or in `powerOff`.
 * @module
 */
import assert from "node:assert/strict";
import { E1000E_DEVICE_ID, E1000E_VENDOR_ID } from "../../src/abi/e1000e.ts";
import { O_CREAT, O_RDWR } from "../../src/abi/uapi/fs.ts";
import { LINUX_REBOOT_CMD_POWER_OFF } from "../../src/abi/uapi/reboot.ts";
import { Agent } from "../../src/agent/agent.ts";
import type { KernelTarget } from "../../src/agent/target/kernel-target.ts";
import { isKernelError } from "../../src/base/errno.ts";
import { alignUp, MIB } from "../../src/base/units.ts";
import { fiemap } from "../../src/host/fiemap.ts";
import type { Host } from "../../src/host/host.ts";
import { listVfioDevices } from "../../src/host/vfio-devices.ts";
import { boot } from "../../src/kernel/boot.ts";
import type { Kernel } from "../../src/kernel/kernel.ts";
import { RESTORES } from "../../src/kernel/restores.ts";
import type { Process } from "../../src/kernel/vfs/process.ts";
import { type MachineConfig, standardConfig } from "../../src/machine/embedded/config.ts";
import { DeterministicMachine } from "../../src/machine/embedded/deterministic.ts";
import type { BootParameters, KernelImage, KernelModule } from "../../src/machine/machine.ts";
import { bootNicGuest } from "../../src/vmm/nic-guest.ts";
import { VirtualMachine } from "../../src/vmm/virtual-machine.ts";
import { DmaWatch } from "./dma-watch.ts";
import { StepFaults } from "./step-faults.ts";

export const IMAGE: KernelImage = {
  name: "vmlinuz",
  entry: "test:vmlinuz",
  release: "test-1",
  restores: RESTORES,
};
export const IMAGE_PATH = `/boot/${IMAGE.name}`;
export const COMMAND_LINE = "liveupdate=on";
/** What updates of these tests go to. */
export const TARGET: KernelTarget = {
  kernel: IMAGE_PATH,
  initrd: null,
  commandLine: COMMAND_LINE,
};
export const MOUNT_POINT = "/mnt/guests";
const STORE = "guests";
const VM_BYTES = 8 * MIB;

/** One kernel that has booted. */
export interface Booted {
  readonly kernel: Kernel;
  readonly host: Process;
  /** 0: the first kernel of the machine. */
  readonly boot: number;
}

export interface RigOptions {
  readonly seed: number;
  readonly vms: number;
  readonly framesPerSecond?: number;
  /** Of each VM. Default 8 MiB. */
  readonly memoryBytes?: number;
  /** What runs on each kernel. */
  readonly userspace: (booted: Booted) => never;
  /** Called before each kernel's boot. */
  readonly beforeBoot?: (boot: number) => void;
}

export class FailureRig {
  readonly machine: DeterministicMachine;
  readonly faults = new StepFaults();
  readonly watch: DmaWatch;
  readonly config: MachineConfig;
  /** Of the serial line. */
  readonly lines: string[] = [];
  readonly seed: number;
  readonly module: KernelModule;
  readonly #memoryBytes: number;
  #boots = 0;
  /** Frames that each VM's NIC took for the VM that had it before: sequence numbers go on. */
  readonly #lostBefore = new Map<string, number>();

  constructor(options: RigOptions) {
    this.seed = options.seed;
    this.#memoryBytes = options.memoryBytes ?? VM_BYTES;
    this.config = standardConfig({
      memoryBytes:
        2 * (alignUp(this.#memoryBytes, 2 * MIB) * Math.ceil(options.vms / 2) + 24 * MIB),
      nics: options.vms,
      framesPerSecond: options.framesPerSecond ?? 20_000,
      installed: [IMAGE],
    });
    this.module = {
      start: (machine, parameters) => {
        const number = this.#boots++;
        options.beforeBoot?.(number);
        const kernel = boot(machine, parameters, { release: IMAGE.release, faults: this.faults });
        return options.userspace({ kernel, host: kernel.spawn(), boot: number });
      },
    };
    this.machine = new DeterministicMachine(this.config, {
      seed: options.seed,
      modules: () => this.module,
      onSerialLine: (line) => this.lines.push(line),
      eventsPerStep: 64,
    });
    this.watch = new DmaWatch(this.machine);
  }

  /** Runs from a cold boot to power-off. */
  run(parameters: BootParameters = { commandLine: COMMAND_LINE, kho: null }): void {
    const end = this.machine.run(this.module, parameters);
    assert.deepEqual(end, { kind: "powered-off", status: 0 }, `seed ${this.seed}`);
    this.checkDma("at the end");
  }

  /** No DMA went where none may go. */
  checkDma(when: string): void {
    assert.deepEqual(this.watch.violations, [], `stray DMA ${when}, seed ${this.seed}`);
  }

  /** Mounts the guests' store; again is fine. */
  mount(host: Host): void {
    try {
      host.mkdir(MOUNT_POINT);
    } catch (error) {
      if (!isKernelError(error, "EEXIST")) throw error;
    }
    host.mount(STORE, MOUNT_POINT, "memfs", "");
  }

  /** Makes files beside the VMs': a directory, a name that needs several slots, single pages. */
  makeFiles(host: Host): void {
    const directory = `${MOUNT_POINT}/images`;
    host.mkdir(directory);
    const fd = host.open(`${directory}/${"a-long-name-".repeat(9)}`, O_RDWR | O_CREAT);
    host.ftruncate(fd, 8192);
    host.fallocate(fd, 0, 0, 8192);
    host.close(fd);
  }

  /** Makes VM number `index`, with NIC number `index`. */
  createVm(host: Host, index: number): VirtualMachine {
    const nics = listVfioDevices(host).filter(
      (d) => d.vendorId === E1000E_VENDOR_ID && d.deviceId === E1000E_DEVICE_ID,
    );
    const name = `vm${index}`;
    const memoryPath = `${MOUNT_POINT}/${name}`;
    const vm = VirtualMachine.create(
      host,
      {
        name,
        memoryPath,
        memoryBytes: this.#memoryBytes,
        devicePath: nics[index].path,
        noiommu: false,
      },
      (machine, registers) => {
        // The memory is there, and nothing has been told to the device yet.
        this.watch.allow(name, frames(host, memoryPath));
        return bootNicGuest(machine, registers);
      },
    );
    this.runVms(host, [vm], 1);
    this.#lostBefore.set(name, this.#lostBefore.has(name) ? vm.guest.counters.lost : 0);
    return vm;
  }

  /** Takes a VM out of its session. */
  restoreVm(host: Host, session: number): VirtualMachine {
    return VirtualMachine.restore(host, session, bootNicGuest);
  }

  /** Stops a VM for good: at rest, audited, and gone. */
  destroyVm(host: Host, vm: VirtualMachine): void {
    vm.guest.shutDown();
    let idle = 0;
    for (let i = 0; idle < 3; i++) {
      assert.ok(i < 10_000, `${vm.name} comes to rest, seed ${this.seed}`);
      if (vm.step()) idle = 0;
      else {
        idle++;
        host.sleep(200_000);
      }
    }
    this.checkVm(vm, "at its end");
    vm.destroy();
    this.watch.forbid(vm.name);
  }

  /** Takes over what the last kernel's agent left, in whole; then lets the VMs run if asked to, ends all, and counts. */
  takeOverAndEnd(booted: Booted, runs: boolean): never {
    const { host } = booted;
    const taken = Agent.takeOver(host, () => {});
    assert.ok(taken !== null, `the journal is there, seed ${this.seed}`);
    this.mount(host);
    const { vms, failures } = taken.agent.restore(taken.journal, {
      open: (session) => this.restoreVm(host, session),
      running: () => {},
      runOthers: () => {},
    });
    assert.deepEqual(failures, []);
    if (runs) this.runVms(host, vms);
    for (const vm of vms) this.destroyVm(host, vm);
    this.checkNoLeaks(booted, "at the end");
    return this.powerOff(booted);
  }

  /** Lets VMs run until each has received `frames` more. */
  runVms(host: Host, vms: readonly VirtualMachine[], count = 2): void {
    const goals = vms.map((vm) => vm.guest.counters.received + count);
    for (let i = 0; vms.some((vm, v) => vm.guest.counters.received < goals[v]); i++) {
      assert.ok(i < 10_000, `frames arrive, seed ${this.seed}`);
      for (const vm of vms) vm.step();
      host.sleep(50_000);
    }
  }

  /** A VM has lost nothing. */
  checkVm(vm: VirtualMachine, when: string): void {
    const { lost, corrupt } = vm.guest.counters;
    const where = `${vm.name} ${when}, seed ${this.seed}`;
    const lostHere = lost - (this.#lostBefore.get(vm.name) ?? 0);
    assert.deepEqual({ lost: lostHere, corrupt }, { lost: 0, corrupt: 0 }, where);
    assert.deepEqual(vm.guest.audit(), [], where);
    assert.equal(vm.guestBytesMoved, 0, where);
  }

  /** Nothing is left of anything. */
  checkNoLeaks({ kernel }: Booted, when: string): void {
    const where = `${when}, seed ${this.seed}`;
    assert.deepEqual(kernel.leaks(), { pages: 0, pins: 0, domains: 0 }, `leaks ${where}`);
    assert.deepEqual(
      kernel.liveUpdate.counts(),
      {
        outgoingSessions: 0,
        incomingSessions: 0,
        preservedInodes: 0,
        outgoingFlbs: 0,
        incomingFlbs: 0,
      },
      `live update ${where}`,
    );
    // One for the function with reserved memory regions.
    assert.equal(kernel.iommu.domainIdCount, 1, `domain ids ${where}`);
    assert.equal(vectorsInUse(kernel), 0, `vectors ${where}`);
  }

  powerOff({ host }: Booted): never {
    return host.reboot(LINUX_REBOOT_CMD_POWER_OFF);
  }
}

/** What an update that was undone must leave exactly as it was. */
export function accounts(kernel: Kernel): Record<string, unknown> {
  return {
    mm: kernel.mm.counts(),
    kho: kernel.kho.sizes(),
    liveUpdate: kernel.liveUpdate.counts(),
    domains: kernel.iommu.domainCount,
    domainIds: kernel.iommu.domainIdCount,
    attached: kernel.iommu.attachedCount,
    pins: kernel.memfs.pinCount + kernel.shmem.pinCount,
    leaks: kernel.leaks(),
    loaded: kernel.kexec.loadedName,
    vectors: vectorsInUse(kernel),
  };
}

function vectorsInUse(kernel: Kernel): number {
  return kernel.vfio.vectors.usedCount;
}

/** Where a file's bytes lie. */
function frames(host: Host, path: string): { start: number; lengthBytes: number }[] {
  const fd = host.open(path, O_RDWR);
  const runs = fiemap(host, fd).map((run) => ({
    start: run.physical,
    lengthBytes: run.lengthBytes,
  }));
  host.close(fd);
  return runs;
}
