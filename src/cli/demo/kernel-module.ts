/** Our kernel with the demo's userspace as init. @module */
import type { FaultInjector } from "../../base/fault-injector.ts";
import { boot } from "../../kernel/boot.ts";
import type { KernelModule } from "../../machine/machine.ts";
import { demoInit } from "./init.ts";

/** The code of an image of that release. */
export function demoKernel(release: string, faults?: FaultInjector): KernelModule {
  return {
    start(machine, parameters) {
      const kernel = boot(machine, parameters, { release, ...(faults && { faults }) });
      return demoInit(kernel.spawn());
    },
  };
}
