/** Machines that our kernels run on. @module */

/** Whose hardware is under the kernels. */
export const MACHINE_KINDS = ["embedded", "qemu"] as const;
export type MachineKind = (typeof MACHINE_KINDS)[number];
