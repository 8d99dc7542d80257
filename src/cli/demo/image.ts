/**
 * The demo's kernel image: what a kernel's thread imports. The release is in the URL's query (`?release=0.1.0-2`), so
 * that one file serves all images.
 * @module
 */
import type { KernelModule } from "../../machine/machine.ts";
import { demoKernel } from "./kernel-module.ts";
import { rehearse } from "./rehearsal.ts";

const release = new URL(import.meta.url).searchParams.get("release");
if (release === null) throw new Error("an image's URL names its release");

const kernel = demoKernel(release);

/** The kernel's entry. */
export const start: KernelModule["start"] = kernel.start;

/** Before the jump: compiles the kernel by running it. */
export const prepare: KernelModule["prepare"] = (isWanted) => rehearse(kernel, isWanted);
