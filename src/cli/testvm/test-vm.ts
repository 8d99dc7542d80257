/**
 * The process of a VM that is memory and nothing else: what a VMM does for live updates, and nothing beside.
 *
 * Lifecycle: register with the agent → begin anew, or take the VM out of its session → write all the time, prove every byte
 *   after each restoration → (kexec, which ends this process; the next one of this name goes on).
 * It is also the example of a VMM: the agent is met in {@link VmCallbacks} and `VmClient.turn()` alone.
 * @module
 */
import { type VmCallbacks, VmClient } from "../../agent/control/vm-client.ts";
import { assert } from "../../base/assert.ts";
import { isKernelError, type KernelError } from "../../base/errno.ts";
import type { Endpoint } from "../../host/channel.ts";
import type { Host } from "../../host/host.ts";
import type { ResourceKind } from "../../vmm/managed-vm.ts";
import {
  type Damage,
  type HugePageAdvice,
  MemoryVm,
  type MemoryVmSpec,
  memoryVmResources,
} from "../../vmm/memory-vm.ts";

/** What is told as it happens; `atNs` is on the machine's clock. */
export type TestVmEvent = { readonly vm: string; readonly atNs: number } & (
  | { readonly event: "started"; readonly memoryBytes: number; readonly seed: number }
  /** Out of its session, and not running yet. */
  | {
      readonly event: "retrieved";
      readonly writes: number;
      readonly without: readonly ResourceKind[];
    }
  /** The guest has written for the first time since. */
  | { readonly event: "running" }
  /** All of memory was compared; without damages it is as it was, to the byte. */
  | {
      readonly event: "verified";
      readonly bytes: number;
      readonly writes: number;
      readonly damagedPages: number;
      readonly damages: readonly Damage[];
    }
  | {
      readonly event: "damaged";
      readonly damagedPages: number;
      readonly damages: readonly Damage[];
    }
  | { readonly event: "registered"; readonly update: number }
  | { readonly event: "preserved"; readonly without: readonly ResourceKind[] }
  | { readonly event: "paused"; readonly writes: number }
  | { readonly event: "resumed" }
  | { readonly event: "unpreserved" }
  | { readonly event: "finished" }
  | { readonly event: "problem"; readonly problem: string }
);

type Happening = TestVmEvent extends infer E
  ? E extends unknown
    ? Omit<E, "vm" | "atNs">
    : never
  : never;

export interface TestVmOptions {
  readonly host: Host;
  readonly spec: MemoryVmSpec;
  readonly connect: () => Endpoint;
  readonly say: (event: TestVmEvent) => void;
  /** Null: pages as they come. */
  readonly advise: HugePageAdvice | null;
}

export class TestVm {
  readonly #options: TestVmOptions;
  readonly #client: VmClient;
  #vm: MemoryVm | null = null;
  /** Its guest has not written since it was retrieved. */
  #isFresh = false;
  #isVerifying = false;
  /** What was told last. */
  #damagedPages = 0;
  #problem: string | null = null;
  #isRegistered = false;
  /** It can neither begin nor be restored. */
  #failure: KernelError | null = null;

  constructor(options: TestVmOptions) {
    this.#options = options;
    const { host, spec, connect } = options;
    const callbacks = this.#callbacks();
    this.#client = new VmClient({ name: spec.name, connect, host, callbacks });
  }

  /** Whether the agent knows the VM, and so can be waited for. */
  get isRegistered(): boolean {
    return this.#client.isRegistered;
  }

  /** Whether nothing wrong was found in memory. */
  get isIntact(): boolean {
    return this.#damagedPages === 0;
  }

  /**
   * A short while of the VM's life.
   * @param timeoutNs - waits so long for the agent, unless there is memory to compare
   * @throws {KernelError} the VM can neither begin nor be restored, as the agent knows
   */
  turn(timeoutNs: number): void {
    this.#client.turn(this.#isVerifying || this.#isFresh ? 0 : timeoutNs);
    if (this.#failure !== null) throw this.#failure;
    this.#tellConnection();
    const vm = this.#vm;
    if (vm === null) return;
    const hasWritten = vm.step();
    if (this.#isFresh && hasWritten) this.#firstWrite();
    if (this.#isVerifying && !vm.verify()) this.#verified(vm);
    this.#tellDamage(vm);
  }

  /** Compares all of memory, in the turns to come. */
  verify(): void {
    this.#vm?.beginVerification();
    this.#isVerifying = this.#vm !== null;
  }

  /** Ends the VM: its memory is gone, unless a session has it. */
  end(): void {
    this.#client.close();
    this.#vm?.destroy();
    this.#vm = null;
  }

  #callbacks(): VmCallbacks {
    const { host, spec, advise } = this.#options;
    const started = () => {
      assert(this.#vm !== null, "a VM that could not begin has ended");
      return this.#vm;
    };
    return {
      resources: () => this.#vm?.resources() ?? memoryVmResources(spec),
      begin: () => {
        this.#vm = this.#orFail(() => MemoryVm.create(host, spec, advise));
        this.#say({ event: "started", memoryBytes: spec.memoryBytes, seed: spec.seed });
      },
      restore: (session) => {
        const vm = this.#orFail(() => MemoryVm.restore(host, session, spec.name, advise));
        const without: readonly ResourceKind[] =
          spec.iommufd && !vm.spec.iommufd ? ["iommufd"] : [];
        this.#vm = vm;
        this.#isFresh = true;
        this.#isVerifying = true;
        this.#client.resourcesChanged();
        this.#say({ event: "retrieved", writes: vm.writes, without });
        vm.resume();
        return null;
      },
      preserve: (session, without) => {
        started().preserve(session, without)();
        this.#say({ event: "preserved", without });
        return null;
      },
      unpreserve: () => {
        started().unpreserve();
        this.#say({ event: "unpreserved" });
      },
      pause: () => {
        const vm = started();
        vm.pause()();
        this.#say({ event: "paused", writes: vm.writes });
        return null;
      },
      resume: () => {
        started().resume();
        this.#say({ event: "resumed" });
      },
      rebuild: () => null,
      swap: () => null,
      finished: () => this.#say({ event: "finished" }),
    };
  }

  #orFail<T>(action: () => T): T {
    try {
      return action();
    } catch (error) {
      if (isKernelError(error)) this.#failure = error;
      throw error;
    }
  }

  #firstWrite(): void {
    this.#isFresh = false;
    this.#client.running(this.#options.host.clockNs());
    this.#say({ event: "running" });
  }

  #verified({ verifiedBytes: bytes, writes, damagedPages, damages }: MemoryVm): void {
    this.#isVerifying = false;
    this.#damagedPages = damagedPages;
    this.#say({ event: "verified", bytes, writes, damagedPages, damages });
  }

  #tellDamage({ damagedPages, damages }: MemoryVm): void {
    if (damagedPages === this.#damagedPages || this.#isVerifying) return;
    this.#damagedPages = damagedPages;
    this.#say({ event: "damaged", damagedPages, damages });
  }

  #tellConnection(): void {
    const { isRegistered, problem, update } = this.#client;
    if (isRegistered && !this.#isRegistered) this.#say({ event: "registered", update });
    this.#isRegistered = isRegistered;
    if (problem !== null && problem !== this.#problem) this.#say({ event: "problem", problem });
    this.#problem = problem;
  }

  #say(event: Happening): void {
    const { host, spec, say } = this.#options;
    say({ ...event, vm: spec.name, atNs: host.clockNs() } as TestVmEvent);
  }
}
