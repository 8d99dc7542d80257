/**
 * The demo's kernel image: what a kernel's thread imports. The release is in the URL's query (`?release=0.1.0-2`), so
 * that one file serves all images.
 * @module
 */
import type { KernelModule } from "../../machine/machine.ts";
import { demoKernel } from "./kernel-module.ts";

const release = new URL(import.meta.url).searchParams.get("release");
if (release === null) throw new Error("an image's URL names its release");

/** The kernel's entry. */
export const start: KernelModule["start"] = demoKernel(release).start;
