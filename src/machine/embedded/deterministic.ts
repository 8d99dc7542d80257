/**
 * The embedded machine in one thread, where a seed decides everything.
 *
 * Between any two stores of a kernel, and at its register accesses, clock reads and halts, devices may step
 * (`seeded-scheduler.ts`), so a run replays byte for byte: equal seeds give equal `logHash()` and `memoryHash()`.
 * A kernel ends as `stoppable-kernel.ts` says. A kernel that leaves by any other error has panicked: `run` throws
 * that error.
 * Limits: what goes through `PhysicalMemory.view` (userspace's mappings of guest memory) is not seen by the
 * scheduler, and loads do not let time pass: a kernel that polls memory must read the clock or halt.
 * @module
 */
import { BugError } from "../../base/assert.ts";
import { MIB } from "../../base/units.ts";
import { buildAddressMap } from "../firmware.ts";
import type { BootParameters, Firmware, KernelImage, KernelModule } from "../machine.ts";
import { createSharedRam, Ram, type SharedRam } from "../physical-memory.ts";
import type { MachineConfig } from "./config.ts";
import { EmbeddedHardware } from "./embedded-machine.ts";
import { EVENT, RunningHash } from "./event-log.ts";
import { HardwareStatistics } from "./hardware-statistics.ts";
import { createInterruptState, InterruptController } from "./interrupts.ts";
import { keptRanges } from "./kexec-kept.ts";
import { scribble, scribblePattern } from "./kexec-scribble.ts";
import { SeededScheduler } from "./seeded-scheduler.ts";
import { type KernelEnd, type KernelMachineParts, runKernel } from "./stoppable-kernel.ts";

export interface DeterministicOptions {
  /** Decides how devices and kernel interleave, how long a jump takes, and what scribbling writes. */
  readonly seed: number;
  /** The code behind an image's entry; undefined when there is none (`kexec.load` fails with ENOENT). */
  readonly modules: (entry: string) => KernelModule | undefined;
  /** Mean number of events between two steps of devices, at least 1. Default: 1 to 256 by the seed. */
  readonly eventsPerStep?: number;
  readonly onSerialLine?: (line: string) => void;
  /** The serial line's other end: asked for the next line, null when there is none. Default: never says anything. */
  readonly serialInput?: () => string | null;
  /** Told before each write of hardware to memory: DMA of devices, and status words of remapping units. */
  readonly onDeviceWrite?: (pa: number, lengthBytes: number) => void;
}

/** How a run ended. */
export type RunEnd = Exclude<KernelEnd, { kind: "kexec" }>;

/** One jump, seen from outside. */
export interface JumpRecord {
  readonly image: KernelImage;
  readonly parameters: BootParameters;
  readonly keptBytes: number;
  readonly overwrittenBytes: number;
  /** By the machine's clock: the old kernel asked for it, was gone, its memory was overwritten, the next one starts. */
  readonly requestedNs: number;
  readonly endedNs: number;
  readonly scribbledNs: number;
  readonly enteredNs: number;
  /** Why nothing was overwritten: what is wrong with the handover. Null when all is well. */
  readonly problem: string | null;
}

/**
 * Called when memory has been overwritten and before the next kernel starts: tests corrupt the handover here.
 *
 * @param ram - raw memory
 * @returns parameters to start the next kernel with
 */
export type JumpHook = (ram: Ram, jump: JumpRecord) => BootParameters;

const JUMP_NS_MIN = 200_000;
const JUMP_NS_MAX = 2_000_000;
/** Devices run this long between two pieces of scribbling. */
const SCRIBBLE_PIECE_NS = 1_000;

/** A machine that is powered on, with no kernel yet. */
export class DeterministicMachine {
  /** Raw memory: for tests to look into and to corrupt. Its stores are neither scheduled nor logged. */
  readonly ram: Ram;
  readonly firmware: Firmware;
  readonly hardware: EmbeddedHardware;
  readonly interrupts: InterruptController;
  readonly statistics: HardwareStatistics;
  /** All jumps so far. */
  readonly jumps: JumpRecord[] = [];

  readonly #scheduler: SeededScheduler;
  readonly #log = new RunningHash();
  readonly #kernelPresent = new Int32Array(new SharedArrayBuffer(4));
  readonly #parts: KernelMachineParts;
  #jumpHook: JumpHook | null = null;

  /** @throws {KernelError} EINVAL when the configuration is not valid */
  constructor(config: MachineConfig, options: DeterministicOptions) {
    const { ram, firmware } = buildAddressMap(config);
    const shared = createSharedRam(ram);
    this.firmware = firmware;
    this.ram = new Ram(shared);
    this.interrupts = new InterruptController(createInterruptState());
    this.statistics = new HardwareStatistics(config);
    const scheduler = new SeededScheduler(options.seed, options.eventsPerStep);
    this.#scheduler = scheduler;
    this.hardware = new EmbeddedHardware({
      config,
      firmware,
      memory: new LoggedRam(shared, this.#log, options.onDeviceWrite ?? (() => {})),
      interrupts: {
        raise: (vector) => {
          this.#log.mix(EVENT.msi);
          this.#log.mix(vector);
          this.interrupts.raise(vector);
        },
      },
      kernelPresent: this.#kernelPresent,
      statistics: this.statistics,
    });
    scheduler.attach(this.hardware.steppers);
    this.#parts = {
      shared,
      mmio: this.hardware.mmio,
      interrupts: this.interrupts,
      firmware,
      scheduler,
      log: this.#log,
      storeLimit: { stores: 0, stopAt: Number.POSITIVE_INFINITY },
      installed: config.installed,
      modules: options.modules,
      onSerialLine: options.onSerialLine ?? (() => {}),
      serialInput: options.serialInput ?? (() => null),
    };
  }

  /** Virtual nanoseconds since power on. */
  get nowNs(): number {
    return this.#scheduler.nowNs;
  }

  /** Stores of all kernels so far, as {@link stopAfterStores} counts them. */
  get stores(): number {
    return this.#parts.storeLimit.stores;
  }

  /**
   * Ends the kernel instead of its n-th store from now on (1: the next), which then never happens. Counts on
   * through jumps.
   */
  stopAfterStores(n: number): void {
    this.#parts.storeLimit.stopAt = this.stores + n;
  }

  /** Calls `hook` at each jump; null for none. */
  onJump(hook: JumpHook | null): void {
    this.#jumpHook = hook;
  }

  /**
   * Starts a kernel, and at each kexec the next one, until one powers off or is stopped. May be called again
   * after that: devices and memory are as they were left.
   *
   * @param module - the first kernel's code
   * @param parameters - for a cold boot `{commandLine, kho: null}`
   * @throws what a kernel throws: a panic
   */
  run(module: KernelModule, parameters: BootParameters): RunEnd {
    let end = this.#enter(module, parameters);
    while (end.kind === "kexec") {
      const handedOver = this.#jump(end.image, end.parameters);
      const next = this.#parts.modules(end.image.entry);
      if (next === undefined) throw new BugError(`the code of ${end.image.entry} is gone`);
      end = this.#enter(next, handedOver);
    }
    return end;
  }

  /** Lets devices run for a time with no kernel at all. */
  runDevices(durationNs: number): void {
    this.#scheduler.runDevices(durationNs);
  }

  /** Hash of everything that happened so far: DMA, register writes, interrupts, serial lines, jumps, in order. */
  logHash(): string {
    return this.#log.digest();
  }

  /** Hash of all memory that was ever stored to. Takes about a second for each GiB of it. */
  memoryHash(): string {
    const hash = new RunningHash();
    const piece = new Uint8Array(2 * MIB);
    for (const { start, lengthBytes } of this.ram.ranges) {
      const end = start + lengthBytes;
      let pa = Math.max(start, this.ram.nextTouched(start));
      while (pa < end) {
        const bytes = piece.subarray(0, Math.min(piece.length - (pa % piece.length), end - pa));
        this.ram.read(pa, bytes);
        hash.mixNumber(pa);
        hash.mixBytes(bytes);
        pa = this.ram.nextTouched(pa + bytes.length);
      }
    }
    return hash.digest();
  }

  #enter(module: KernelModule, parameters: BootParameters): KernelEnd {
    this.#kernelPresent[0] = 1;
    try {
      return runKernel(this.#parts, module, parameters);
    } finally {
      this.#kernelPresent[0] = 0;
    }
  }

  #jump(image: KernelImage, parameters: BootParameters): BootParameters {
    const { prng } = this.#scheduler;
    this.#log.mix(EVENT.kexec);
    this.#log.mixText(image.name);
    this.#log.mixText(parameters.commandLine);
    const kept = keptRanges(this.ram, parameters.kho);
    const requestedNs = this.nowNs;
    const jumpNs = JUMP_NS_MIN + prng.below(JUMP_NS_MAX - JUMP_NS_MIN);
    // Devices go on before, during and after: DMA meets memory in every state of the jump.
    this.runDevices(jumpNs / 2);
    const endedNs = this.nowNs;
    let overwrittenBytes = 0;
    if (kept.problem === null) {
      const between = () => this.runDevices(SCRIBBLE_PIECE_NS);
      const pattern = scribblePattern(prng.next());
      const { memory } = this.firmware;
      overwrittenBytes = scribble(this.ram, memory, kept.ranges, pattern, between);
    }
    const scribbledNs = this.nowNs;
    this.runDevices(jumpNs / 2);
    const jump: JumpRecord = {
      image,
      parameters,
      keptBytes: kept.ranges.reduce((sum, range) => sum + range.lengthBytes, 0),
      overwrittenBytes,
      requestedNs,
      endedNs,
      scribbledNs,
      enteredNs: this.nowNs,
      problem: kept.problem,
    };
    this.jumps.push(jump);
    return this.#jumpHook === null ? parameters : this.#jumpHook(this.ram, jump);
  }
}

/** RAM as devices have it: what they read and write by DMA goes into the log. */
class LoggedRam extends Ram {
  readonly #log: RunningHash;
  readonly #beforeWrite: (pa: number, lengthBytes: number) => void;

  constructor(
    shared: SharedRam,
    log: RunningHash,
    beforeWrite: (pa: number, lengthBytes: number) => void,
  ) {
    super(shared);
    this.#log = log;
    this.#beforeWrite = beforeWrite;
  }

  override read(pa: number, target: Uint8Array): void {
    this.#log.mix(EVENT.dmaRead);
    this.#log.mixNumber(pa);
    this.#log.mix(target.length);
    super.read(pa, target);
  }

  override write(pa: number, bytes: Uint8Array): void {
    this.#beforeWrite(pa, bytes.length);
    this.#log.mix(EVENT.dmaWrite);
    this.#log.mixNumber(pa);
    this.#log.mixBytes(bytes);
    super.write(pa, bytes);
  }

  /** An aligned word of DMA, or the status write of a remapping unit. */
  override store32(pa: number, value: number): void {
    this.#beforeWrite(pa, 4);
    this.#log.mix(EVENT.dmaWrite);
    this.#log.mixNumber(pa);
    this.#log.mix(value);
    super.store32(pa, value);
  }
}
