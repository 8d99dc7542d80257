/** The kernel that an update goes to. @module */

/** What kexec_file_load is given. */
export interface KernelTarget {
  /** Path of the kernel image. */
  readonly kernel: string;
  /** Path of the initrd; null for none. */
  readonly initrd: string | null;
  readonly commandLine: string;
}

/** What is known of a target without loading it. */
export interface TargetDescription extends KernelTarget {
  readonly kind: "holdfast" | "linux";
  /** uname -r of that kernel. */
  readonly release: string;
  /** `compatible` strings of what it can restore; null when that cannot be told. */
  readonly restores: readonly string[] | null;
  /** Why it cannot be the target. */
  readonly problems: readonly string[];
  /** What could not be found out, and might be why it cannot be. */
  readonly unknowns: readonly string[];
}
