/**
 * The Machine of one kernel in the deterministic machine, which dies with that kernel.
 *
 * A kernel ends by a private object that is thrown through it, at `kexec.execute`, `powerOff` or a store at
 * which it is to be stopped. From then on every store, register access and call throws that object again, so no
 * `finally` and no undoing of a kernel that is gone can change anything.
 * Limits: loads still work, and so do mappings that `PhysicalMemory.view` gave out before.
 * @module
 */
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type {
  BootParameters,
  Clock,
  Firmware,
  Interrupts,
  KernelImage,
  KernelModule,
  Kexec,
  Machine,
  Mmio,
  Serial,
} from "../machine.ts";
import { ObservedRam, type SharedRam } from "../physical-memory.ts";
import { EVENT, type RunningHash } from "./event-log.ts";
import type { InterruptController } from "./interrupts.ts";
import type { SeededScheduler } from "./seeded-scheduler.ts";

/** How a kernel ended. */
export type KernelEnd =
  | { readonly kind: "powered-off"; readonly status: number }
  /** By {@link StoreLimit}: memory and devices are as they were before that store. */
  | { readonly kind: "stopped"; readonly atStore: number }
  | {
      readonly kind: "kexec";
      readonly image: KernelImage;
      readonly parameters: BootParameters;
    };

/** Stores of all kernels of a machine, and the one that is not to happen. */
export interface StoreLimit {
  stores: number;
  stopAt: number;
}

/** What a kernel's machine is made of. */
export interface KernelMachineParts {
  readonly shared: SharedRam;
  readonly mmio: Mmio;
  readonly interrupts: InterruptController;
  readonly firmware: Firmware;
  readonly scheduler: SeededScheduler;
  readonly log: RunningHash;
  readonly storeLimit: StoreLimit;
  readonly installed: readonly KernelImage[];
  readonly modules: (entry: string) => KernelModule | undefined;
  readonly onSerialLine: (line: string) => void;
  readonly serialInput: () => string | null;
}

// What events cost, about as on a real machine: enough for frames at a rate to arrive between them.
const STORE_NS = 5;
const MMIO_NS = 250;
const CALL_NS = 50;

/** Thrown through a kernel to end it. Private: nothing can catch it by type. */
class MachineStop {
  readonly end: KernelEnd;
  constructor(end: KernelEnd) {
    this.end = end;
  }
}

/**
 * Runs one kernel to its end.
 *
 * @throws what the kernel throws while it has not been ended: a panic. {@link BugError} when its module returns.
 */
export function runKernel(
  parts: KernelMachineParts,
  module: KernelModule,
  parameters: BootParameters,
): KernelEnd {
  const kernel = new StoppableKernel(parts);
  try {
    module.start(kernel, parameters);
  } catch (error) {
    // Once the kernel has been ended, what its unwinding made of the stop no longer matters.
    if (kernel.endedBy === null) {
      kernel.kill();
      throw error;
    }
  }
  const end = kernel.endedBy;
  kernel.kill();
  assert(end !== null, "the kernel's start() returned");
  return end;
}

class StoppableKernel implements Machine {
  readonly memory: KernelRam;
  readonly mmio: Mmio;
  readonly interrupts: Interrupts;
  readonly firmware: Firmware;
  readonly clock: Clock;
  readonly serial: Serial;
  readonly kexec: Kexec;
  readonly #parts: KernelMachineParts;
  #stop: MachineStop | null = null;
  #loaded: KernelImage | null = null;

  constructor(parts: KernelMachineParts) {
    this.#parts = parts;
    const { scheduler, log } = parts;
    this.firmware = parts.firmware;
    this.memory = new KernelRam(
      parts.shared,
      () => this.#store(),
      () => this.#event(CALL_NS),
    );
    this.mmio = {
      read: (pa, size) => {
        this.#event(MMIO_NS);
        return parts.mmio.read(pa, size);
      },
      write: (pa, size, value) => {
        this.#event(MMIO_NS);
        log.mix(EVENT.mmioWrite);
        log.mixNumber(pa);
        log.mix(value);
        parts.mmio.write(pa, size, value);
      },
    };
    this.interrupts = {
      take: (vector) => {
        this.#event(CALL_NS);
        return parts.interrupts.take(vector);
      },
      wait: (timeoutNs) => {
        this.#event(CALL_NS);
        scheduler.halt(timeoutNs, () => parts.interrupts.anyPending());
      },
    };
    this.clock = {
      nowNs: () => {
        this.#event(CALL_NS);
        return scheduler.nowNs;
      },
    };
    this.serial = {
      writeLine: (line) => {
        this.#event(CALL_NS);
        log.mix(EVENT.serial);
        log.mixText(line);
        parts.onSerialLine(line);
      },
      readLine: () => {
        this.#event(CALL_NS);
        const line = parts.serialInput();
        if (line !== null) {
          log.mix(EVENT.serialInput);
          log.mixText(line);
        }
        return line;
      },
    };
    this.kexec = {
      installed: parts.installed,
      load: (image) => this.#load(image),
      execute: (parameters) => this.#execute(parameters),
    };
  }

  get endedBy(): KernelEnd | null {
    return this.#stop?.end ?? null;
  }

  /** Makes the machine dead whatever the kernel did, also when it panicked. */
  kill(): void {
    this.#stop ??= new MachineStop({ kind: "powered-off", status: 1 });
  }

  powerOff(status: number): never {
    this.#event(CALL_NS);
    const { log } = this.#parts;
    log.mix(EVENT.powerOff);
    log.mix(status);
    return this.#end({ kind: "powered-off", status });
  }

  #load(image: KernelImage | null): void {
    this.#event(CALL_NS);
    if (image !== null && this.#parts.modules(image.entry) === undefined)
      throw new KernelError("ENOENT", "kexec load", `image "${image.name}": no ${image.entry}`);
    this.#loaded = image;
  }

  #execute(parameters: BootParameters): never {
    this.#event(CALL_NS);
    assert(this.#loaded !== null, "kexec.execute without a loaded image");
    // A copy: only data may go over, whatever object the kernel hands in.
    const { commandLine, kho } = parameters;
    const copy: BootParameters = {
      commandLine,
      kho: kho && {
        fdtAddress: kho.fdtAddress,
        fdtSizeBytes: kho.fdtSizeBytes,
        scratchAddress: kho.scratchAddress,
        scratchSizeBytes: kho.scratchSizeBytes,
      },
    };
    return this.#end({ kind: "kexec", image: this.#loaded, parameters: copy });
  }

  #store(): void {
    this.#checkAlive();
    const { storeLimit, log, scheduler } = this.#parts;
    if (++storeLimit.stores === storeLimit.stopAt) {
      log.mix(EVENT.stop);
      this.#end({ kind: "stopped", atStore: storeLimit.stores });
    }
    scheduler.tick(STORE_NS);
  }

  #event(costNs: number): void {
    this.#checkAlive();
    this.#parts.scheduler.tick(costNs);
  }

  #end(end: KernelEnd): never {
    this.#stop = new MachineStop(end);
    throw this.#stop;
  }

  #checkAlive(): void {
    if (this.#stop !== null) throw this.#stop;
  }
}

/** RAM as the kernel has it: every store is an event, and so is a mapping. */
class KernelRam extends ObservedRam {
  readonly #beforeView: () => void;

  constructor(shared: SharedRam, beforeStore: () => void, beforeView: () => void) {
    super(shared, beforeStore);
    this.#beforeView = beforeView;
  }

  override view(pa: number, lengthBytes: number): Uint8Array<SharedArrayBuffer> {
    this.#beforeView();
    return super.view(pa, lengthBytes);
  }
}
