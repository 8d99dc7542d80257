/**
 * The embedded machine in one thread, as fast as it goes: devices run only when the kernel reads the clock, uses a
 * register or halts, and nothing is logged or hashed.
 *
 * Why beside `deterministic.ts`: that one looks at every store, which is what tests want and what measurements and a
 * rehearsal of a kernel's code (`rehearsal.ts` of the demo) cannot have. Both run the same hardware.
 * Time is virtual and passes by these events alone. A kernel ends by an object thrown through it; its memory is cut off
 * at that moment, so no `finally` and no undoing of a kernel that is gone changes anything.
 * Limit: mappings that `PhysicalMemory.view` gave out before still work.
 * @module
 */
import { assert, BugError } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import { buildAddressMap } from "../firmware.ts";
import type { BootParameters, Firmware, KernelImage, KernelModule, Machine } from "../machine.ts";
import { createSharedRam, Ram, type SharedRam } from "../physical-memory.ts";
import type { MachineConfig } from "./config.ts";
import { EmbeddedHardware } from "./embedded-machine.ts";
import { HardwareStatistics } from "./hardware-statistics.ts";
import { createInterruptState, InterruptController } from "./interrupts.ts";
import { keptRanges } from "./kexec-kept.ts";
import { scribble, scribblePattern } from "./kexec-scribble.ts";

export interface InProcessOptions {
  /** The code behind an image's entry; undefined when there is none (`kexec.load` fails with ENOENT). */
  readonly modules: (entry: string) => KernelModule | undefined;
  readonly onSerialLine?: (line: string) => void;
  /** The serial line's other end: asked for the next line, null when there is none. Default: never says anything. */
  readonly serialInput?: () => string | null;
  /** Called when a kernel has ended by kexec, and when memory has been overwritten. */
  readonly onJump?: (moment: "ended" | "scribbled") => void;
  /** Looked at whenever time passes; true ends the machine there and then. */
  readonly isOver?: () => boolean;
}

/** How a kernel ended. */
type KernelEnd =
  | { readonly kind: "over" }
  | { readonly kind: "powered-off"; readonly status: number }
  | { readonly kind: "kexec"; readonly image: KernelImage; readonly parameters: BootParameters };

const CLOCK_NS = 100;
const MMIO_NS = 250;
/** Devices step no more often than this while the kernel is at work. */
const STEP_NS = 2_000;

export class InProcessMachine {
  readonly statistics: HardwareStatistics;
  readonly firmware: Firmware;
  readonly #shared: SharedRam;
  readonly #ram: Ram;
  readonly #hardware: EmbeddedHardware;
  readonly #interrupts = new InterruptController(createInterruptState());
  readonly #kernelPresent = new Int32Array(new SharedArrayBuffer(4));
  readonly #config: MachineConfig;
  readonly #options: InProcessOptions;
  #nowNs = 0;
  #steppedNs = 0;
  #jumps = 0;

  /** @throws {KernelError} EINVAL when the configuration is not valid */
  constructor(config: MachineConfig, options: InProcessOptions) {
    const { ram, firmware } = buildAddressMap(config);
    this.firmware = firmware;
    this.statistics = new HardwareStatistics(config);
    this.#config = config;
    this.#options = options;
    this.#shared = createSharedRam(ram);
    this.#ram = new Ram(this.#shared);
    this.#hardware = new EmbeddedHardware({
      config,
      firmware,
      memory: this.#ram,
      interrupts: this.#interrupts,
      kernelPresent: this.#kernelPresent,
      statistics: this.statistics,
    });
  }

  /**
   * Runs a kernel, and at each kexec the next one, until one powers off. May be called again after that: devices and
   * memory are as they were left.
   *
   * @returns the status that it powered off with; null when {@link InProcessOptions.isOver} has ended it
   * @throws what a kernel throws: a panic. {@link BugError} when its module returns
   */
  run(module: KernelModule, parameters: BootParameters): number | null {
    for (let next = module, given = parameters; ; ) {
      const end = this.#enter(next, given);
      if (end.kind === "powered-off") return end.status;
      if (end.kind === "over") return null;
      const loaded = this.#options.modules(end.image.entry);
      if (loaded === undefined) throw new BugError(`the code of ${end.image.entry} is gone`);
      this.#jump(end.parameters);
      next = loaded;
      given = end.parameters;
    }
  }

  #enter(module: KernelModule, parameters: BootParameters): KernelEnd {
    const kernel = new KernelMachine(this.#shared, {
      mmio: {
        read: (pa, size) => {
          this.#pass(MMIO_NS);
          return this.#hardware.mmio.read(pa, size);
        },
        write: (pa, size, value) => {
          this.#pass(MMIO_NS);
          this.#hardware.mmio.write(pa, size, value);
        },
      },
      interrupts: {
        take: (vector) => this.#interrupts.take(vector),
        wait: (timeoutNs) => this.#halt(timeoutNs),
      },
      clock: {
        nowNs: () => {
          this.#pass(CLOCK_NS);
          return this.#nowNs;
        },
      },
      firmware: this.firmware,
      installed: this.#config.installed,
      isImage: (image) => this.#options.modules(image.entry) !== undefined,
      isOver: this.#options.isOver ?? (() => false),
      onSerialLine: this.#options.onSerialLine ?? (() => {}),
      serialInput: this.#options.serialInput ?? (() => null),
    });
    this.#kernelPresent[0] = 1;
    try {
      module.start(kernel, parameters);
    } catch (error) {
      // Once it has ended, what its unwinding made of that no longer matters.
      if (kernel.endedBy === null) throw error;
    } finally {
      kernel.memory.disconnect();
      this.#kernelPresent[0] = 0;
    }
    if (kernel.endedBy === null) throw new BugError("the kernel's start() returned");
    return kernel.endedBy;
  }

  #jump(parameters: BootParameters): void {
    this.#options.onJump?.("ended");
    const kept = keptRanges(this.#ram, parameters.kho);
    if (kept.problem === null)
      scribble(this.#ram, this.firmware.memory, kept.ranges, scribblePattern(++this.#jumps));
    this.#options.onJump?.("scribbled");
  }

  #pass(costNs: number): void {
    this.#nowNs += costNs;
    if (this.#nowNs - this.#steppedNs >= STEP_NS) this.#step();
  }

  #step(): void {
    this.#steppedNs = this.#nowNs;
    this.#hardware.step(this.#nowNs);
  }

  #halt(timeoutNs: number): void {
    const deadlineNs = this.#nowNs + timeoutNs;
    for (;;) {
      this.#step();
      if (this.#interrupts.anyPending() || this.#nowNs >= deadlineNs) return;
      const dueNs = Math.min(deadlineNs, this.#hardware.nextDueNs());
      if (dueNs === Number.POSITIVE_INFINITY)
        throw new BugError(
          "the kernel halts for ever: no timeout, and no device has anything to do",
        );
      this.#nowNs = Math.max(this.#nowNs + STEP_NS, dueNs);
    }
  }
}

interface KernelMachineParts {
  readonly mmio: Machine["mmio"];
  readonly interrupts: Machine["interrupts"];
  readonly clock: Machine["clock"];
  readonly firmware: Firmware;
  readonly installed: readonly KernelImage[];
  isImage(image: KernelImage): boolean;
  isOver(): boolean;
  onSerialLine(line: string): void;
  serialInput(): string | null;
}

/** Thrown through a kernel to end it. Private: nothing can catch it by type. */
class KernelStop {
  readonly end: KernelEnd;
  constructor(end: KernelEnd) {
    this.end = end;
  }
}

/** What one kernel has of the machine. */
class KernelMachine implements Machine {
  readonly memory: Ram;
  readonly mmio: Machine["mmio"];
  readonly interrupts: Machine["interrupts"];
  readonly firmware: Firmware;
  readonly clock: Machine["clock"];
  readonly serial: Machine["serial"];
  readonly kexec: Machine["kexec"];
  #stop: KernelStop | null = null;
  #loaded: KernelImage | null = null;

  constructor(shared: SharedRam, parts: KernelMachineParts) {
    const { mmio, interrupts, clock } = parts;
    this.memory = new Ram(shared);
    this.firmware = parts.firmware;
    const alive = <A extends unknown[], R>(call: (...args: A) => R) => {
      return (...args: A): R => {
        if (this.#stop !== null) throw this.#stop;
        if (parts.isOver()) return this.#end({ kind: "over" });
        return call(...args);
      };
    };
    this.mmio = { read: alive(mmio.read), write: alive(mmio.write) };
    this.interrupts = { take: alive(interrupts.take), wait: alive(interrupts.wait) };
    this.clock = { nowNs: alive(clock.nowNs) };
    this.serial = {
      writeLine: alive((line: string) => parts.onSerialLine(line)),
      readLine: alive(() => parts.serialInput()),
    };
    this.kexec = {
      installed: parts.installed,
      load: alive((image: KernelImage | null) => {
        if (image !== null && !parts.isImage(image))
          throw new KernelError("ENOENT", "kexec load", `image "${image.name}": no ${image.entry}`);
        this.#loaded = image;
      }),
      execute: ({ commandLine, kho }) => {
        const image = this.#loaded;
        assert(image !== null, "kexec.execute without a loaded image");
        // A copy: only data may go over, whatever object the kernel hands in.
        return this.#end({
          kind: "kexec",
          image,
          parameters: { commandLine, kho: kho && { ...kho } },
        });
      },
    };
  }

  get endedBy(): KernelEnd | null {
    return this.#stop?.end ?? null;
  }

  powerOff(status: number): never {
    return this.#end({ kind: "powered-off", status });
  }

  #end(end: KernelEnd): never {
    if (this.#stop !== null) throw this.#stop;
    this.#stop = new KernelStop(end);
    this.memory.disconnect();
    throw this.#stop;
  }
}
