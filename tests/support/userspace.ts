/**
 * The only process of a kernel under test: stores, VMs, and an agent that updates the host so and so often.
 *
 * It is the demo's life of a host with two differences: what it runs is a plan that may mix stores, nodes, segments and
 * no-IOMMU, and it stops at named points for somebody to look. It keeps nothing from kernel to kernel but what is
 * in the journal and in the sessions.
 * @module
 */
import assert from "node:assert/strict";
import { E1000E_DEVICE_ID, E1000E_VENDOR_ID } from "../../src/abi/e1000e.ts";
import { LINUX_REBOOT_CMD_POWER_OFF } from "../../src/abi/uapi/reboot.ts";
import { Agent } from "../../src/agent/agent.ts";
import { isKernelError } from "../../src/base/errno.ts";
import type { Host } from "../../src/host/host.ts";
import { listVfioDevices } from "../../src/host/vfio-devices.ts";
import { bootNicGuest } from "../../src/vmm/nic-guest.ts";
import { VirtualMachine } from "../../src/vmm/virtual-machine.ts";

/** A memfs mount under /mnt. */
export interface StorePlan {
  readonly name: string;
  /** As mount(2): "node=1". */
  readonly options?: string;
}

export interface VmPlan {
  readonly name: string;
  /** NIC number of the machine. */
  readonly nic: number;
  readonly store: string;
  readonly memoryBytes: number;
  readonly noiommu?: boolean;
}

export interface UserspacePlan {
  readonly stores: readonly StorePlan[];
  readonly vms: readonly VmPlan[];
  readonly updates: number;
  /** How long VMs run before and after each update. */
  readonly runNs: number;
  /** Image of the n-th update, from 1 on: "/boot/NAME". */
  readonly image: (update: number) => string;
  /** Kernel command line of the n-th update, from 1 on. */
  readonly commandLine: (update: number) => string;
}

/** Where somebody may look: after phases of the agent, and where VMs begin and end. `vms` are those that live. */
export type UserspacePoint =
  | "created"
  | "restored"
  | "rebuilt"
  | "swapped"
  | "finished"
  | "drained"
  | "abandoned"
  | "destroyed"
  | "ended";

export type Look = (point: UserspacePoint, agent: Agent, vms: readonly VirtualMachine[]) => void;

const POINT_AFTER: Readonly<Record<string, UserspacePoint>> = {
  restore: "restored",
  rebuild: "rebuilt",
  swap: "swapped",
  finish: "finished",
};
/** Sleep between steps when no guest has work. */
const IDLE_NS = 20_000;
const STEPS_BETWEEN = 4;
/** How long rings may take to run dry at the end. */
const DRAIN_NS = 2e9;

/** Path of a store's mount. */
export function mountPoint(store: string): string {
  return `/mnt/${store}`;
}

/** Path of a VM's memory. */
export function memoryPath({ name, store }: VmPlan): string {
  return `${mountPoint(store)}/${name}`;
}

/** Runs until the kernel ends. @throws {KernelError} when anything fails */
export function runUserspace(host: Host, plan: UserspacePlan, look: Look): never {
  let agent: Agent | null = null;
  let vms: readonly VirtualMachine[] = [];
  const opened: VirtualMachine[] = [];
  const taken = Agent.takeOver(host, ({ name }) => {
    const point = POINT_AFTER[name];
    if (point !== undefined && agent !== null) look(point, agent, opened);
  });
  agent = taken?.agent ?? Agent.start(host, () => undefined);
  for (const store of plan.stores) mountStore(host, store);
  if (taken === null) {
    vms = createVms(host, plan);
    look("created", agent, vms);
  } else {
    const result = agent.restore(taken.journal, {
      open: (session) => {
        const vm = VirtualMachine.restore(host, session, bootNicGuest);
        opened.push(vm);
        return vm;
      },
      running: () => undefined,
      runOthers: (running) => {
        for (let i = 0; i < STEPS_BETWEEN; i++) for (const vm of running) vm.step();
      },
    });
    for (const { vm, error } of result.failures) {
      if (agent.restoration?.vm(vm)?.state === "retrieved") agent.restoration.abandon(vm);
      look("abandoned", agent, opened);
      throw error;
    }
    vms = result.vms;
  }
  runFor(host, vms, plan.runNs);
  const next = agent.updates + 1;
  if (next <= plan.updates)
    return agent.update(vms, {
      kernel: plan.image(next),
      initrd: null,
      commandLine: plan.commandLine(next),
    });
  drain(host, vms);
  look("drained", agent, vms);
  for (const [i, vm] of vms.entries()) {
    vm.destroy();
    look("destroyed", agent, vms.slice(i + 1));
  }
  look("ended", agent, []);
  return host.reboot(LINUX_REBOOT_CMD_POWER_OFF);
}

/** Makes the mount point and mounts a store there. */
export function mountStore(host: Host, { name, options }: StorePlan): void {
  try {
    host.mkdir(mountPoint(name));
  } catch (error) {
    if (!isKernelError(error, "EEXIST")) throw error;
  }
  host.mount(name, mountPoint(name), "memfs", options ?? "");
}

function createVms(host: Host, plan: UserspacePlan): VirtualMachine[] {
  const nics = listVfioDevices(host).filter(
    (d) => d.vendorId === E1000E_VENDOR_ID && d.deviceId === E1000E_DEVICE_ID,
  );
  return plan.vms.map((vm) =>
    VirtualMachine.create(
      host,
      {
        name: vm.name,
        memoryPath: memoryPath(vm),
        memoryBytes: vm.memoryBytes,
        devicePath: nics[vm.nic].path,
        noiommu: vm.noiommu ?? false,
      },
      bootNicGuest,
    ),
  );
}

function runFor(host: Host, vms: readonly VirtualMachine[], durationNs: number): void {
  const endNs = host.clockNs() + durationNs;
  while (host.clockNs() < endNs) {
    let busy = false;
    for (const vm of vms) if (vm.step()) busy = true;
    if (!busy) host.sleep(IDLE_NS);
  }
}

/** Stops guests and lets their rings run dry. */
function drain(host: Host, vms: readonly VirtualMachine[]): void {
  for (const vm of vms) vm.guest.shutDown();
  const endNs = host.clockNs() + DRAIN_NS;
  while (!vms.every((vm) => vm.guest.isAtRest)) {
    assert(host.clockNs() < endNs, "guests come to rest");
    let busy = false;
    for (const vm of vms) if (vm.step()) busy = true;
    if (!busy) host.sleep(IDLE_NS);
  }
}
