/**
 * The VMs of a machine of ours: each with a memory file and a NIC of the machine, made on a cold boot and brought back
 * after an update.
 * @module
 */
import { E1000E_DEVICE_ID, E1000E_VENDOR_ID } from "../../abi/e1000e.ts";
import type { Agent, RestoreFailure } from "../../agent/agent.ts";
import type { Journal } from "../../agent/journal.ts";
import { assert } from "../../base/assert.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import type { Host } from "../../host/host.ts";
import { listVfioDevices } from "../../host/vfio-devices.ts";
import { bootNicGuest } from "../../vmm/nic-guest.ts";
import { VirtualMachine } from "../../vmm/virtual-machine.ts";

const STORE = "guests";
const MOUNT_POINT = "/mnt/guests";
/** Steps of all guests between two steps of the restoration that are off the critical path. */
const STEPS_BETWEEN = 16;

/** Mounts the store of guest memory; a kernel after an update finds in it what was in it. */
export function mountGuestStore(host: Host): void {
  try {
    host.mkdir(MOUNT_POINT);
  } catch (error) {
    if (!isKernelError(error, "EEXIST")) throw error;
  }
  host.mount(STORE, MOUNT_POINT, "memfs", "");
}

/** @throws {KernelError} ENODEV when there are fewer NICs than VMs */
export function createGuests(
  host: Host,
  { vms, memoryBytes }: { readonly vms: number; readonly memoryBytes: number },
): VirtualMachine[] {
  const nics = listVfioDevices(host).filter(
    (d) => d.vendorId === E1000E_VENDOR_ID && d.deviceId === E1000E_DEVICE_ID,
  );
  if (nics.length < vms)
    throw new KernelError("ENODEV", "create guests", `${nics.length} NICs for ${vms} VMs`);
  return nics.slice(0, vms).map((nic, i) =>
    VirtualMachine.create(
      host,
      {
        name: `vm${i}`,
        memoryPath: `${MOUNT_POINT}/vm${i}`,
        memoryBytes,
        devicePath: nic.path,
        noiommu: false,
      },
      bootNicGuest,
    ),
  );
}

/** Told how VMs come back. */
export interface GuestWatcher {
  running(vm: VirtualMachine, blackoutNs: number): void;
  failed(failure: RestoreFailure): void;
}

/** @returns those that run */
export function restoreGuests(
  host: Host,
  agent: Agent,
  journal: Journal,
  watcher: GuestWatcher,
): VirtualMachine[] {
  const { vms, failures } = agent.restore(journal, {
    open: (session) => VirtualMachine.restore(host, session, bootNicGuest),
    running: (vm, blackoutNs) => {
      assert(blackoutNs !== null, "the machine's clock goes on through a kexec");
      watcher.running(vm, blackoutNs);
    },
    runOthers: (running) => {
      for (let i = 0; i < STEPS_BETWEEN; i++) for (const vm of running) vm.step();
    },
  });
  for (const failure of failures) {
    watcher.failed(failure);
    // Nobody will ask for it again: the host goes on without it.
    if (failure.phase === "restore") giveUp(agent, failure.vm);
  }
  return [...vms];
}

/** Frees what the session of a VM holds that could not be restored. */
function giveUp(agent: Agent, vm: string): void {
  try {
    agent.restoration?.abandon(vm);
  } catch (error) {
    // The failure is told already; its session stays, and with it what it holds.
    if (!(error instanceof KernelError)) throw error;
  }
}
