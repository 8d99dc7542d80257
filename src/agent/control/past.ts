/**
 * What an agent finds when it starts: the journal of the kernel before, the state that an agent before it left in this kernel,
 * both, or neither; and what of it cannot be relied on.
 * @module
 */
import { KernelError } from "../../base/errno.ts";
import type { Host } from "../../host/host.ts";
import { Agent, type PhaseObserver } from "../agent.ts";
import type { Journal } from "../journal.ts";
import type { Restoration } from "../restoration.ts";
import {
  type AgentState,
  keptJournal,
  type PastVm,
  STATE_FORMAT,
  type StateStore,
} from "./agent-state.ts";

export interface Past {
  readonly agent: Agent;
  readonly restoration: Restoration;
  readonly journal: Journal | null;
  readonly vms: readonly PastVm[];
  /** What an operator should know. */
  readonly notes: readonly string[];
  /** A state or a journal could not be read: there may be sessions that nobody knows of. */
  readonly isUnknown: boolean;
  /** The journal could not be written down: it is in its session, until it can. */
  readonly isJournalUnkept: boolean;
}

export interface PastSource {
  readonly host: Host;
  readonly store: StateStore | null;
  readonly bootId: string;
  /** Given: VMs of the journal are the process's own, and whoever has them brings them back. */
  readonly ownVms?: unknown;
}

/** @throws {KernelError} as {@link Agent.start} */
export function readPast(source: PastSource, observe: PhaseObserver): Past {
  const { host, store, bootId } = source;
  const notes: string[] = [];
  const saved = readState(store, notes);
  const before = saved.state?.bootId === bootId ? saved.state : null;
  const announce = () => (before === null ? announceTakeOver(source, notes) : undefined);
  const came = takeJournal(source, observe, announce, notes);
  if (saved.state !== null && before === null && came.taken === null)
    notes.push(...staleNotes(saved.state));
  if (before?.isUpdating === true) undoUpdate(host, notes);
  const isUnknown =
    saved.isDamaged || came.isDamaged || (before?.isPastUnknown === true && came.taken === null);
  if (isUnknown && !saved.isDamaged && !came.isDamaged)
    notes.push(
      "an agent before this one ended while it took the last update over, or could not read what was left of it: its journal is lost; root's VMs get their sessions by name all the same",
    );
  const journal = came.taken?.journal ?? before?.journal ?? null;
  const vms = came.taken === null ? (before?.vms ?? []) : incomingVms(source, came.taken.journal);
  const agent = came.taken?.agent ?? Agent.start(host, observe, journal);
  const unkept = came.taken?.unkept ?? null;
  if (unkept !== null)
    notes.push(
      `the journal of the update stays where it is, it cannot be written: ${unkept.message}`,
    );
  const left = new Set(vms.filter(({ state }) => state !== "registered").map(({ name }) => name));
  const settled = (journal?.vms ?? []).map(({ name }) => name).filter((name) => !left.has(name));
  return {
    agent,
    restoration: agent.beginRestoration(journal ?? { vms: [] }, settled),
    journal,
    vms,
    notes,
    isUnknown,
    isJournalUnkept: unkept !== null,
  };
}

/** Damage is told, and does not keep the agent from its VMs. */
function readState(
  store: StateStore | null,
  notes: string[],
): { state: AgentState | null; isDamaged: boolean } {
  try {
    return { state: store?.read() ?? null, isDamaged: false };
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    notes.push(`what the agent before this one wrote down is lost: ${error.message}`);
    return { state: null, isDamaged: true };
  }
}

/**
 * The session that the journal comes in is finished with the process that has retrieved it. If this one ends before the
 * journal is written down, the next finds neither, and must not take the VMs of the update for new ones.
 */
function announceTakeOver({ store, bootId }: PastSource, notes: string[]): void {
  try {
    store?.write({
      format: STATE_FORMAT,
      bootId,
      isUpdating: false,
      isPastUnknown: true,
      journal: null,
      vms: [],
    });
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    notes.push(`this agent must not end before its state can be written: ${error.message}`);
  }
}

/** What an agent that was killed could not undo: its sessions ended with it, the kernel that it had loaded did not. */
function undoUpdate(host: Host, notes: string[]): void {
  notes.push("the agent before this one ended in an update: it did not happen, and is undone");
  try {
    host.kexecUnload();
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    notes.push(`the kernel that it had loaded is still there: ${error.message}`);
  }
}

function takeJournal(
  source: PastSource,
  observe: PhaseObserver,
  announce: () => void,
  notes: string[],
) {
  const { host, store, bootId } = source;
  try {
    const keep = (journal: Journal) =>
      store?.write({
        format: STATE_FORMAT,
        bootId,
        isUpdating: false,
        isPastUnknown: false,
        journal: keptJournal(journal),
        vms: incomingVms(source, journal),
      });
    return { taken: Agent.takeOver(host, observe, keep, announce), isDamaged: false };
  } catch (error) {
    // When it is the device that cannot be opened, `start` says so once more.
    if (!(error instanceof KernelError)) throw error;
    notes.push(`the journal of the update cannot be read: ${error.message}`);
    return { taken: null, isDamaged: true };
  }
}

function incomingVms({ ownVms }: PastSource, journal: Journal): PastVm[] {
  if (ownVms !== undefined) return [];
  return journal.vms.map(({ name, ownerUid }) => ({
    name,
    ownerUid,
    state: "incoming",
    holderPid: null,
    blackoutNs: null,
    problem: null,
  }));
}

function staleNotes({ bootId, isUpdating, vms }: AgentState): string[] {
  if (vms.length === 0) return [];
  const names = vms.map(({ name }) => name).join(", ");
  const why = isUpdating
    ? "an update was under way, and no journal came through it: this kernel did not take the handover over"
    : "the host was booted anew since";
  return [
    `the agent's state is of another boot (${bootId}): ${why}. VMs that were there: ${names}`,
  ];
}
