/**
 * The kernel image of a machine with an agent: what a kernel's thread imports. The release is in the URL's query.
 * @module
 */
import { boot } from "../../kernel/boot.ts";
import type { KernelModule } from "../../machine/machine.ts";
import { demoKernel } from "../demo/kernel-module.ts";
import { rehearse } from "../demo/rehearsal.ts";
import { agentInit } from "./init.ts";

const release = new URL(import.meta.url).searchParams.get("release");
if (release === null) throw new Error("an image's URL names its release");

/** The kernel's entry. */
export const start: KernelModule["start"] = (machine, parameters) =>
  agentInit(boot(machine, parameters, { release }).spawn());

/** Before the jump: the same kernel, agent and VMs are compiled by running them under the demo. */
export const prepare: KernelModule["prepare"] = (isWanted) =>
  rehearse(demoKernel(release), isWanted);
