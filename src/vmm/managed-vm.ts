/**
 * What a virtual machine monitor offers to the orchestrator of a live update.
 * @module
 */

/** One thing of a VM that an update has to carry. */
export interface Resource {
  readonly kind: "memory" | "state" | "iommufd" | "device";
  /** For a person: a path, a device name. */
  readonly label: string;
  /** Bytes that it stands for; 0 for what is not memory. */
  readonly bytes: number;
  /** Formats that the target kernel must be able to restore: its own, and those of what it needs. */
  readonly compatibles: readonly string[];
  /** Why it cannot be preserved as it is now, or null. */
  readonly blocker: string | null;
}

/**
 * Waits until what was begun is done. So whoever drives several VMs begins with all of them before it waits for any.
 *
 * @throws {KernelError} what it failed with; ETIMEDOUT when it does not end
 */
export type Pending = () => void;

/** Of what is done at once. */
export const DONE: Pending = () => undefined;

/** A VM that runs. */
export interface ManagedVm {
  /** Unique on the host; names its session, so at most 63 bytes. */
  readonly name: string;
  resources(): readonly Resource[];
  /**
   * Puts everything of the VM into an outgoing session. The guest runs on.
   * @throws {KernelError} what PRESERVE_FD throws, at once or from the result; the caller closes the session, which
   *   undoes it
   */
  preserve(session: number): Pending;
  /** The session is gone: the VM is ordinary again. Also after a `preserve` that failed. */
  unpreserve(): void;
  /** Stops the guest and saves its registers into what is preserved. */
  pause(): Pending;
  /** The guest runs again, after a jump that did not happen. */
  resume(): void;
  /** Lets the guest run for a short while. @returns whether it did anything */
  step(): boolean;
}

/** A VM that came out of an incoming session and runs on the previous kernel's translations. */
export interface RestoredVm extends ManagedVm {
  /** Builds the ordinary chain anew: mapping, IOAS, HWPT. The guest runs between its calls. */
  rebuild(): void;
  /** Moves the device to the rebuilt HWPT, which the kernel compares with the old one first. */
  swap(): void;
}
