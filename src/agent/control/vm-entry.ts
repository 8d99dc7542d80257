/** A VM as the agent knows it by its name: who has it, where it is, what the last update left of it. @module */
import type { Resource } from "../../vmm/managed-vm.ts";
import type { PastVm } from "./agent-state.ts";
import type { Client } from "./client.ts";
import type { VmState, VmStatus } from "./protocol.ts";

/** States of a VM that is not out of the last update yet. */
const UNRESTORED: readonly VmState[] = ["incoming", "restoring", "restored", "lost"];

export class VmEntry {
  readonly name: string;
  /** User that its VMMs belong to; null where the place has no users. */
  readonly ownerUid: number | null;
  state: VmState;
  /** Its VMM; null while none is connected. */
  client: Client | null = null;
  /** As its VMM has last said. */
  resources: readonly Resource[] = [];
  /** Process of its last VMM; null when that has let go of it. It may live on without a connection, and have the VM's memory. */
  holderPid: number | null = null;
  blackoutNs: number | null = null;
  /** What went wrong last; null when nothing did. */
  problem: string | null = null;

  constructor(name: string, ownerUid: number | null, state: VmState) {
    this.name = name;
    this.ownerUid = ownerUid;
    this.state = state;
  }

  /** @param past - of an agent before this one: its VMM is not connected to this one yet */
  static ofPast(past: PastVm): VmEntry {
    const state = past.state === "registered" ? "absent" : past.state;
    const entry = new VmEntry(past.name, past.ownerUid, state);
    entry.holderPid = past.holderPid;
    entry.blackoutNs = past.blackoutNs;
    entry.problem = past.problem;
    return entry;
  }

  /** Whether what an update preserved of it is still in a session of the previous kernel. */
  get isUnrestored(): boolean {
    return UNRESTORED.includes(this.state);
  }

  get past(): PastVm {
    const { name, ownerUid, state, holderPid, blackoutNs, problem } = this;
    const isPast =
      state === "incoming" || state === "restoring" || state === "restored" || state === "lost";
    return {
      name,
      ownerUid,
      state: isPast ? state : "registered",
      holderPid,
      blackoutNs,
      problem,
    };
  }

  get status(): VmStatus {
    const { name, state, client, resources, ownerUid, blackoutNs, problem } = this;
    return {
      name,
      state,
      pid: client?.pid ?? null,
      uid: ownerUid,
      resources,
      blackoutNs,
      problem,
    };
  }
}
