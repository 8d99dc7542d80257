/**
 * The userspace of a machine that waits for its operator: VMs, and an agent that answers over the serial line.
 * @module
 */
import { AgentServer } from "../../agent/control/server.ts";
import type { Host } from "../../host/host.ts";
import { SerialEndpoint } from "../../host/serial-endpoint.ts";
import type { VirtualMachine } from "../../vmm/virtual-machine.ts";
import { createGuests, mountGuestStore, restoreGuests } from "../demo/guests.ts";
import { planFromCommandLine } from "./plan.ts";

/** Sleep between steps when no guest has work. */
const IDLE_NS = 200_000;

/** Runs until the kernel ends. */
export function agentInit(host: Host): never {
  const plan = planFromCommandLine(host.commandLine);
  let vms: readonly VirtualMachine[] = [];
  const server = AgentServer.start({
    host,
    endpoint: new SerialEndpoint(host),
    store: null,
    bootId: "",
    group: null,
    ownVms: () => vms,
  });
  mountGuestStore(host);
  vms =
    server.journal === null
      ? createGuests(host, plan)
      : restoreGuests(host, server.agent, server.journal, {
          running: (vm, blackoutNs) =>
            host.print(`${vm.name} runs again after ${(blackoutNs / 1e6).toFixed(2)} ms`),
          failed: ({ vm, phase, error }) => host.print(`${vm}: ${phase}: ${error.message}`),
        });
  host.print(`agent: ${host.release}, ${vms.length} VMs, ready`);
  for (;;) {
    server.poll(0);
    let busy = false;
    for (const vm of vms) if (vm.step()) busy = true;
    if (!busy) host.sleep(IDLE_NS);
  }
}
