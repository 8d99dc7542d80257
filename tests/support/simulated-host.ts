/**
 * A whole host in the deterministic machine: hardware, kernels that follow one another, userspace by a plan, and every
 * invariant checked at every quiet point of its life.
 *
 * Points of a life: booted · created · [frozen · jumped · booted · restored · rebuilt · swapped · finished] ... ·
 * drained · destroyed (each VM) · ended. At "frozen" a kernel is about to jump, at "jumped" none exists.
 * @module
 */
import assert from "node:assert/strict";
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, O_RDWR } from "../../src/abi/uapi/fs.ts";
import { GRANULARITY_GLOBAL } from "../../src/abi/vtd/registers.ts";
import { isKernelError } from "../../src/base/errno.ts";
import { GIB, MIB, PAGE_SIZE } from "../../src/base/units.ts";
import { boot } from "../../src/kernel/boot.ts";
import type { Kernel } from "../../src/kernel/kernel.ts";
import { RESTORES } from "../../src/kernel/restores.ts";
import type { Process } from "../../src/kernel/vfs/process.ts";
import type {
  EduConfig,
  MachineConfig,
  SegmentConfig,
  SlotConfig,
} from "../../src/machine/embedded/config.ts";
import { DeterministicMachine } from "../../src/machine/embedded/deterministic.ts";
import type { VtdUnit } from "../../src/machine/embedded/vtd/vtd-unit.ts";
import type {
  BootParameters,
  KernelImage,
  KernelModule,
  KhoBootParameters,
  Machine,
} from "../../src/machine/machine.ts";
import type { VirtualMachine } from "../../src/vmm/virtual-machine.ts";
import { DeviceWrites } from "./device-writes.ts";
import {
  type ExpectedVm,
  faultProblems,
  filesOf,
  type GuestReport,
  type HostState,
  ownershipProblems,
  PreservedSnapshot,
  quietProblems,
  reachProblems,
  readHostState,
  trafficProblems,
} from "./invariants.ts";
import { extentRange } from "./physical-map.ts";
import {
  memoryPath,
  runUserspace,
  type StorePlan,
  type UserspacePoint,
  type VmPlan,
} from "./userspace.ts";

export type Point = UserspacePoint | "booted" | "frozen" | "jumped";

/** The host at one point of its life. */
export interface Moment {
  readonly point: Point;
  /** Updates begun. */
  readonly update: number;
  readonly machine: DeterministicMachine;
  /** Null while none exists. */
  readonly kernel: Kernel | null;
  /** The process of userspace, once there is one. */
  readonly host: Process | null;
  readonly vms: readonly VirtualMachine[];
  /** Checks the invariants once more: after a test has changed something that must not matter. */
  check(): void;
}

/** Everything that a test may choose. */
export interface SimulationOptions {
  readonly seed: number;
  readonly eventsPerStep?: number;
  /** Default: two nodes of 48 MiB. */
  readonly nodeBytes?: readonly number[];
  /** Default: one segment with an ordinary remapping unit and a NIC for each VM. */
  readonly segments?: readonly SegmentConfig[];
  readonly framesPerSecond?: number;
  /** Default: one store "guests". */
  readonly stores?: readonly StorePlan[];
  /** Default: two VMs of 8 MiB. */
  readonly vms?: readonly VmPlan[];
  readonly updates: number;
  readonly runNs?: number;
  /** Words beside "liveupdate=on"; 0 is the cold boot. */
  readonly commandLine?: (update: number) => string;
  /**
   * Remapping units forget all that they have cached before each request, as hardware may at any time: every walk
   * starts from the root table, so that no cache hides an entry that is wrong for a moment.
   */
  readonly cachesNothing?: boolean;
  /** Frames may come faster than guests take them. */
  readonly mayOverrun?: boolean;
  /** Functions that the test itself attaches, as {@link functionKey}: it looks after what they reach. */
  readonly others?: ReadonlySet<string>;
  /** DMA that is blocked is expected. */
  readonly mayFault?: boolean;
  /** Called at each point, after the invariants were checked. */
  readonly look?: (moment: Moment) => void;
  /** Called with each kernel before userspace starts: a negative control breaks it here. */
  readonly tamper?: (kernel: Kernel, update: number, machine: DeterministicMachine) => void;
}

/** What a run was. */
export interface Simulation {
  readonly machine: DeterministicMachine;
  readonly guests: readonly GuestReport[];
  /** Lines of the serial console. */
  readonly lines: readonly string[];
  /** Invariants checked, at how many points. */
  readonly points: number;
  /** Of the last kernel, when userspace had taken everything down. */
  readonly leaks: ReturnType<Kernel["leaks"]>;
}

export const VM_BYTES = 8 * MIB;
const NODE_BYTES = 48 * MIB;
const FRAMES_PER_SECOND = 50_000;
const RUN_NS = 500_000;

/** A NIC behind a root port of its own. */
export function nicSlot(device: number, name: string, framesPerSecond: number): SlotConfig {
  return {
    model: "root-port",
    device,
    function: 0,
    children: [{ model: "e1000e", device: 0, function: 0, name, framesPerSecond, rmrrBytes: 0 }],
  };
}

/** An edu device on bus 0. */
export function eduSlot(device: number, rmrrBytes = 0): EduConfig {
  return { model: "edu", device, function: 0, rmrrBytes };
}

/** An ordinary segment: an edu device with an RMRR, and NICs. */
export function segment(
  firstNic: number,
  nics: number,
  framesPerSecond = FRAMES_PER_SECOND,
  drhd: SegmentConfig["drhd"] = { addressBits: 48, superpages: true },
): SegmentConfig {
  const slots: SlotConfig[] = [eduSlot(1, 2 * PAGE_SIZE)];
  for (let i = 0; i < nics; i++) slots.push(nicSlot(4 + i, `nic${firstNic + i}`, framesPerSecond));
  return { drhd, slots };
}

/** VMs "vm0", "vm1", ... on NICs 0, 1, ... */
export function vmPlans(count: number, changes: Partial<VmPlan> = {}): VmPlan[] {
  return Array.from({ length: count }, (_, i) => ({
    name: `vm${i}`,
    nic: i,
    store: "guests",
    memoryBytes: VM_BYTES,
    ...changes,
  }));
}

/**
 * Runs a host from power-on to power-off.
 *
 * @throws {AssertionError} at the first point where an invariant does not hold; the message names seed and point
 */
export function simulate(options: SimulationOptions): Simulation {
  return new Run(options).run();
}

class Run {
  readonly #options: SimulationOptions;
  readonly #config: MachineConfig;
  readonly #vms: readonly VmPlan[];
  readonly #stores: readonly StorePlan[];
  readonly #machine: DeterministicMachine;
  readonly #writes: DeviceWrites;
  readonly #module: KernelModule;
  readonly #lines: string[] = [];
  readonly #guests: GuestReport[] = [];
  #alive: readonly string[] = [];
  #kernel: Kernel | null = null;
  #host: Process | null = null;
  #kho: KhoBootParameters | null = null;
  #functions: Kernel["pci"]["functions"] = [];
  #snapshot: PreservedSnapshot | null = null;
  #update = 0;
  #points = 0;
  #leaks: ReturnType<Kernel["leaks"]> | null = null;

  constructor(options: SimulationOptions) {
    this.#options = options;
    this.#vms = options.vms ?? vmPlans(2);
    this.#stores = options.stores ?? [{ name: "guests" }];
    this.#config = {
      nodeBytes: options.nodeBytes ?? [NODE_BYTES, NODE_BYTES],
      segments: options.segments ?? [segment(0, this.#vms.length, options.framesPerSecond)],
      installed: Array.from({ length: options.updates + 1 }, (_, i) => imageOf(i)),
    };
    this.#module = { start: (machine, parameters) => this.#start(machine, parameters) };
    let observe = (_pa: number, _lengthBytes: number): void => {};
    this.#machine = new DeterministicMachine(this.#config, {
      seed: options.seed,
      modules: () => this.#module,
      onSerialLine: (line) => this.#lines.push(line),
      onDeviceWrite: (pa, lengthBytes) => observe(pa, lengthBytes),
      ...(options.eventsPerStep === undefined ? {} : { eventsPerStep: options.eventsPerStep }),
    });
    if (options.cachesNothing === true)
      for (const unit of this.#machine.hardware.vtds) if (unit !== null) forgetAlways(unit);
    const last = this.#machine.ram.ranges.at(-1);
    assert(last !== undefined && last.start + last.lengthBytes <= 4 * GIB, "a small machine");
    const writes = new DeviceWrites(last.start + last.lengthBytes);
    this.#writes = writes;
    observe = (pa, lengthBytes) => writes.observe(pa, lengthBytes);
  }

  run(): Simulation {
    const machine = this.#machine;
    machine.onJump((_ram, { parameters, problem }) => {
      assert.equal(problem, null, `the machine can read the handover, seed ${this.#options.seed}`);
      this.#at("jumped", []);
      return parameters;
    });
    const end = machine.run(this.#module, { commandLine: this.#commandLine(0), kho: null });
    assert.deepEqual(end, { kind: "powered-off", status: 0 }, this.#where("at the end"));
    assert.equal(machine.jumps.length, this.#options.updates, this.#where("at the end"));
    assert(this.#leaks !== null, "userspace came to its end");
    return {
      machine,
      guests: this.#guests,
      lines: this.#lines,
      points: this.#points,
      leaks: this.#leaks,
    };
  }

  #commandLine(update: number): string {
    const words = this.#options.commandLine?.(update) ?? "";
    return `liveupdate=on ${words}`.trim();
  }

  #start(machine: Machine, parameters: BootParameters): never {
    const { tamper, updates, runNs } = this.#options;
    const kernel = boot(this.#watchKexec(machine), parameters, {
      release: imageOf(this.#update).release,
    });
    this.#kernel = kernel;
    this.#functions = kernel.pci.functions;
    this.#at("booted", []);
    tamper?.(kernel, this.#update, this.#machine);
    const host = kernel.spawn();
    this.#host = host;
    return runUserspace(
      host,
      {
        stores: this.#stores,
        vms: this.#vms,
        updates,
        runNs: runNs ?? RUN_NS,
        image: (update) => `/boot/${imageOf(update).name}`,
        commandLine: (update) => this.#commandLine(update),
      },
      (point, _agent, vms) => {
        if (point === "drained") for (const vm of vms) this.#guests.push(reportOf(vm));
        // A VM that could not be restored is missed by userspace, which throws why.
        this.#alive = vms.map((vm) => vm.name);
        this.#at(point, vms);
      },
    );
  }

  /** The machine as a kernel has it, but for a look just before the jump. */
  #watchKexec(machine: Machine): Machine {
    const { memory, mmio, interrupts, firmware, clock, serial, kexec } = machine;
    return {
      memory,
      mmio,
      interrupts,
      firmware,
      clock,
      serial,
      powerOff: (status) => machine.powerOff(status),
      kexec: {
        installed: kexec.installed,
        load: (image) => kexec.load(image),
        execute: (parameters) => {
          this.#update++;
          this.#kho = parameters.kho;
          this.#at("frozen", []);
          this.#kernel = null;
          this.#host = null;
          return kexec.execute(parameters);
        },
      },
    };
  }

  #at(point: Point, vms: readonly VirtualMachine[]): void {
    this.#check(point);
    this.#options.look?.({
      point,
      update: this.#update,
      machine: this.#machine,
      kernel: this.#kernel,
      host: this.#host,
      vms,
      check: () => this.#check(point),
    });
  }

  /** Checks everything that must hold at this point. */
  #check(point: Point): void {
    this.#points++;
    const machine = this.#machine;
    const kernel = this.#kernel;
    const kho = kernel?.kho.bootParameters() ?? this.#kho;
    assert(kho !== null, "there is a kernel or a handover");
    const isJump = point === "frozen" || point === "jumped";
    const state = readHostState(machine, kho);
    const expected = this.#expectedVms();
    this.#allowWrites(state, point);
    const problems = [
      ...ownershipProblems(state, kernel, isJump),
      ...reachProblems(
        state,
        expected,
        machine.firmware.rmrrs,
        isJump ? new Set() : this.#options.others,
      ),
      ...this.#writes.stray.map((what) => `hardware wrote ${what}`),
      ...(isJump ? quietProblems(machine, this.#functions, expected) : []),
      ...(this.#options.mayFault === true ? [] : faultProblems(machine)),
      ...this.#contentProblems(point, state),
      ...this.#pinProblems(point),
    ];
    if (point === "drained")
      problems.push(...trafficProblems(machine, this.#guests, this.#options.mayOverrun ?? false));
    if (point === "ended") problems.push(...this.#leakProblems(kernel));
    assert.deepEqual(problems, [], this.#where(`at "${point}"`));
  }

  #where(when: string): string {
    const updates = `${this.#update} of ${this.#options.updates}`;
    return `seed ${this.#options.seed}, ${when}, update ${updates}`;
  }

  #expectedVms(): ExpectedVm[] {
    return this.#vms
      .filter((vm) => this.#alive.includes(vm.name))
      .map((vm) => {
        const { endpoint } = this.#machine.hardware.nics[vm.nic];
        const nicSegment = this.#machine.statistics.nics()[vm.nic].segment;
        return {
          name: vm.name,
          file: `${vm.store}:${vm.name}`,
          segment: nicSegment,
          bdf: (endpoint.bus.number << 8) | endpoint.devfn,
          noiommu: vm.noiommu ?? false,
        };
      });
  }

  #allowWrites(state: HostState, point: Point): void {
    const ranges = [
      ...this.#machine.firmware.rmrrs,
      ...filesOf(state).flatMap((file) => file.extents.map(extentRange)),
      // The word that wait descriptors write, behind the descriptors.
      ...state.units.map(({ queuePa }) => ({ start: queuePa + PAGE_SIZE, lengthBytes: 4 })),
    ];
    this.#writes.allow(ranges, point);
  }

  /** From "frozen" to "jumped" nothing that is preserved changes; up to "booted" no guest memory. */
  #contentProblems(point: Point, state: HostState): readonly string[] {
    const { ram } = state;
    if (point === "frozen") {
      this.#writes.mark();
      this.#snapshot = new PreservedSnapshot(state);
    }
    if (this.#snapshot === null) return [];
    if (point === "jumped") return this.#snapshot.problems(ram, this.#writes);
    if (point !== "booted") return [];
    const files = new Set(filesOf(state).map((file) => file.label));
    const problems = this.#snapshot.problems(ram, this.#writes, files);
    this.#snapshot = null;
    return problems;
  }

  /** A VM's memory cannot be taken from it. */
  #pinProblems(point: Point): readonly string[] {
    const host = this.#host;
    if (host === null || point === "frozen") return [];
    const problems: string[] = [];
    for (const vm of this.#vms) {
      if (!this.#alive.includes(vm.name)) continue;
      const path = memoryPath(vm);
      const fd = host.open(path, O_RDWR);
      const busy = (what: string, action: () => void) => {
        try {
          action();
          problems.push(`${what} of ${path} is not refused`);
        } catch (error) {
          if (!isKernelError(error, "EBUSY")) throw error;
        }
      };
      const hole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
      busy("truncation", () => host.ftruncate(fd, 0));
      busy("a hole", () => host.fallocate(fd, hole, vm.memoryBytes - PAGE_SIZE, PAGE_SIZE));
      host.close(fd);
      busy("unlink", () => host.unlink(path));
    }
    return problems;
  }

  #leakProblems(kernel: Kernel | null): readonly string[] {
    assert(kernel !== null, "VMs are destroyed in a kernel");
    this.#leaks = kernel.leaks();
    return Object.entries(this.#leaks).flatMap(([what, count]) =>
      count === 0 ? [] : [`${count} ${what} leaked`],
    );
  }
}

function forgetAlways(unit: VtdUnit): void {
  const translate = unit.translate.bind(unit);
  // The fabric calls the unit by this property, so an own one stands in for the method.
  unit.translate = (sourceId, iova, isWrite) => {
    unit.invalidateContext(GRANULARITY_GLOBAL, 0, 0, 0);
    unit.invalidateIotlb(GRANULARITY_GLOBAL, 0, 0, 0);
    return translate(sourceId, iova, isWrite);
  };
}

function imageOf(update: number): KernelImage {
  const release = `sim-${update}`;
  return { name: `vmlinuz-${release}`, entry: `sim:${update}`, release, restores: RESTORES };
}

function reportOf(vm: VirtualMachine): GuestReport {
  const { received, lost, corrupt, transmitted } = vm.guest.counters;
  return {
    name: vm.name,
    nicId: vm.guest.nicId,
    received,
    lost,
    corrupt,
    transmitted,
    problems: vm.guest.audit(),
    bytesMoved: vm.guestBytesMoved,
  };
}
