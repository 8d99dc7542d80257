/**
 * What a virtual machine monitor offers to the orchestrator of a live update.
 * @module
 */

/** What kinds of things a VM consists of, for an update. */
export const RESOURCE_KINDS = ["memory", "state", "iommufd", "device"] as const;

export type ResourceKind = (typeof RESOURCE_KINDS)[number];

/** One thing of a VM that an update has to carry. */
export interface Resource {
  readonly kind: ResourceKind;
  /** For a person: a path, a device name. */
  readonly label: string;
  /** Bytes that it stands for; 0 for what is not memory. */
  readonly bytes: number;
  /** Formats that the target kernel must be able to restore: its own, and those of what it needs. */
  readonly compatibles: readonly string[];
  /** Why it cannot be preserved as it is now, or null. */
  readonly blocker: string | null;
  /** The VM cannot go on without it. Of what is not essential the VM can let go when it is told to. */
  readonly essential: boolean;
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
  /** User that its process belongs to: only that user's gets it back. Null where VMs are the agent's own. */
  readonly ownerUid: number | null;
  resources(): readonly Resource[];
  /**
   * Puts everything of the VM into an outgoing session. The guest runs on.
   *
   * @param session - stays the caller's
   * @param without - kinds that are left behind: the VM lets go of what it has of them. None of them is essential to it
   * @throws {KernelError} what PRESERVE_FD throws, at once or from the result; the caller closes the session, which
   *   undoes it
   */
  preserve(session: number, without: readonly ResourceKind[]): Pending;
  /** The session is gone: the VM is ordinary again. Also after a `preserve` that failed or was not waited for. */
  unpreserve(): void;
  /** Stops the guest and saves its registers into what is preserved. */
  pause(): Pending;
  /** The guest runs again, after a jump that did not happen. Also after a `pause` that failed or was not waited for. */
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
