/**
 * The rest of a restoration, once a VM's guest runs again: rebuild, swap, finish. Each VM goes its own way, by its VMM's
 * answers; nothing here waits.
 * @module
 */
import { KernelError } from "../../base/errno.ts";
import type { RemoteVm } from "./remote-vm.ts";
import type { VmEntry } from "./vm-entry.ts";

/** Attempts at a step. */
const ATTEMPTS = 3;

/** What it needs of the server. */
export interface Finisher {
  /** Finishes the VM's session. @throws {KernelError} EBUSY a file of it cannot be given up yet */
  finish(name: string): void;
  /** Told after each change of a VM. */
  changed(entry: VmEntry): void;
}

export class Completion {
  readonly #finisher: Finisher;
  /** Those whose next answer goes on here. */
  readonly #underWay = new Set<RemoteVm>();

  constructor(finisher: Finisher) {
    this.#finisher = finisher;
  }

  /** Takes a VM that is `restored` to its end. After a failure: another attempt, from the first step on. */
  proceed(vm: RemoteVm): void {
    if (vm.entry.state !== "restored" || this.#underWay.has(vm)) return;
    this.#underWay.add(vm);
    vm.entry.problem = null;
    // A VM without an IOMMU has no translations to build anew.
    if (!vm.resources().some(({ kind }) => kind === "iommufd")) this.#finish(vm);
    else
      this.#ask(vm, "rebuild", ATTEMPTS, () =>
        this.#ask(vm, "swap", ATTEMPTS, () => this.#finish(vm)),
      );
  }

  #ask(vm: RemoteVm, step: "rebuild" | "swap", attempts: number, then: () => void): void {
    vm.ask({ do: step }, (outcome) => {
      if (outcome === "done") then();
      else if (attempts > 1 && !vm.isGone) this.#ask(vm, step, attempts - 1, then);
      else this.#stop(vm, outcome);
    });
  }

  #finish(vm: RemoteVm): void {
    const { entry } = vm;
    try {
      this.#finisher.finish(entry.name);
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      this.#stop(vm, error);
      return;
    }
    this.#underWay.delete(vm);
    entry.state = "running";
    this.#finisher.changed(entry);
    vm.ask({ do: "finished" }, (outcome) => {
      if (outcome === "done") return;
      entry.problem = outcome.message;
      this.#finisher.changed(entry);
    });
  }

  #stop(vm: RemoteVm, error: KernelError): void {
    this.#underWay.delete(vm);
    vm.entry.problem = error.message;
    this.#finisher.changed(vm.entry);
  }
}
