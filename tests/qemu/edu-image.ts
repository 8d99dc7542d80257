/**
 * The demo's kernel with an edu user beside its agent: right before the first update it starts a transfer that nobody
 * preserves, due in 100 ms. With no update to come it starts it at once.
 * @module
 */

import { PAGE_SIZE } from "../../src/base/units.ts";
import { planFromCommandLine } from "../../src/cli/demo/events.ts";
import { demoInit } from "../../src/cli/demo/init.ts";
import type { Host } from "../../src/host/host.ts";
import { boot } from "../../src/kernel/boot.ts";
import type { KernelModule } from "../../src/machine/machine.ts";
import { EduUser } from "../support/edu-user.ts";

const release = new URL(import.meta.url).searchParams.get("release") ?? "";
const SLOT = "0000:00:01.0";

export const start: KernelModule["start"] = (machine, parameters) => {
  const host = boot(machine, parameters, { release }).spawn();
  return demoInit(parameters.kho === null ? withEdu(host) : host);
};

/** Calls of the demo's that come when the store is there, and the update is near if there is one. */
function withEdu(host: Host): Host {
  const trigger = planFromCommandLine(host.commandLine).updates > 0 ? "reboot" : "eventfd";
  let isStarted = false;
  return new Proxy(host, {
    get(target, name) {
      const value: unknown = Reflect.get(target, name, target);
      if (typeof value !== "function") return value;
      return (...args: unknown[]) => {
        if (name === trigger && !isStarted) {
          isStarted = true;
          const user = new EduUser(host, SLOT);
          user.start(user.mapFile(), PAGE_SIZE / 2);
        }
        return Reflect.apply(value, target, args) as unknown;
      };
    },
  });
}
