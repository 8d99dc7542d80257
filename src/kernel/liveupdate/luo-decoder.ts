/**
 * Reads and checks all that the previous kernel's orchestrator left, before any of it is used.
 *
 * Why: upstream reads sessions when /dev/liveupdate is first opened, and leaks what it cannot read. A handover
 * that holds running DMA must be known to be whole before the first page is given out. So everything is decoded
 * at boot, including each handler's own data, and refused as a whole by the name of the field that is wrong.
 * Checked: every block preserved and claimed once; counts; names and tokens unique; every handler and FLB known;
 * the FLBs' reference counts equal to the files that need them.
 * Source: Linux 7.3 kernel/liveupdate/luo_core.c luo_early_startup, luo_session.c luo_session_deserialize
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import { blockEntries, readBlocks } from "../../abi/kho-block.ts";
import {
  LUO_ABI_COMPATIBLE,
  LUO_FILE_SER,
  LUO_FLB_HEADER_SER,
  LUO_FLB_MAX,
  LUO_FLB_PGCNT,
  LUO_FLB_SER,
  LUO_KHO_ENTRY_NAME,
  LUO_SER,
  LUO_SESSION_SER,
} from "../../abi/luo.ts";
import { hex } from "../../base/units.ts";
import type { IncomingMemory } from "../kho/incoming.ts";
import type { FileHandler, FileLifecycleBound } from "./file-handler.ts";
import { type FlbRegistry, flbEntryPa, type IncomingFlb } from "./flb-registry.ts";
import type { DecodedFile } from "./incoming-session.ts";
import type { HandlerRegistry } from "./live-update-core.ts";

export interface DecodedSession {
  readonly name: string;
  readonly files: readonly DecodedFile[];
}

/** The previous kernel's state, checked. */
export interface DecodedLiveUpdate {
  readonly liveupdateNumber: number;
  readonly sessions: readonly DecodedSession[];
  readonly flbs: readonly IncomingFlb[];
  /** The orchestrator's own pages, order 0, needed no more. */
  readonly pages: readonly number[];
}

/**
 * Decodes the subtree "LUO".
 *
 * @param blob - where the KHO tree says that it is; untrusted
 * @throws {HandoverError}
 */
export function decodeLiveUpdate(
  incoming: IncomingMemory,
  blob: { readonly pa: number; readonly sizeBytes: number },
  handlers: HandlerRegistry,
  flbs: FlbRegistry,
): DecodedLiveUpdate {
  const pages: number[] = [];
  if (!(blob.sizeBytes >= LUO_SER.sizeBytes))
    throw new HandoverError(
      `subtree "${LUO_KHO_ENTRY_NAME}".blob-size`,
      `${blob.sizeBytes} bytes are less than a luo_ser, ${LUO_SER.sizeBytes}`,
    );
  incoming.claim(blob.pa, 0, `subtree "${LUO_KHO_ENTRY_NAME}".preserved-data`);
  pages.push(blob.pa);
  const luo = LUO_SER.read(incoming.memory, blob.pa);
  if (luo.compatible !== LUO_ABI_COMPATIBLE)
    throw new HandoverError(
      "luo_ser.compatible",
      `${quote(luo.compatible)} is not "${LUO_ABI_COMPATIBLE}"`,
    );
  if (!Number.isSafeInteger(luo.liveupdate_num) || luo.liveupdate_num < 1)
    throw new HandoverError("luo_ser.liveupdate_num", `${luo.liveupdate_num} is not a number`);

  const decodedFlbs = decodeFlbs(incoming, luo.flbs_pa, flbs, pages);
  const sessions = decodeSessions(incoming, luo.sessions_pa, handlers, decodedFlbs, pages);
  decodedFlbs.forEach((one, i) => {
    const needed = countUsers(sessions, one.flb);
    if (one.count !== needed)
      throw new HandoverError(
        `luo_flb_ser[${i}].count`,
        `${one.count}, but ${needed} files need "${one.flb.compatible}"`,
      );
  });
  return { liveupdateNumber: luo.liveupdate_num, sessions, flbs: decodedFlbs, pages };
}

function countUsers(sessions: readonly DecodedSession[], flb: FileLifecycleBound): number {
  let count = 0;
  for (const session of sessions)
    for (const file of session.files) if (file.handler.flbs.includes(flb)) count++;
  return count;
}

function decodeFlbs(
  incoming: IncomingMemory,
  pa: number,
  registry: FlbRegistry,
  pages: number[],
): IncomingFlb[] {
  if (pa === 0) return [];
  incoming.claim(pa, 0, "luo_ser.flbs_pa");
  pages.push(pa);
  const { pgcnt, count } = LUO_FLB_HEADER_SER.read(incoming.memory, pa);
  if (pgcnt !== LUO_FLB_PGCNT)
    throw new HandoverError("luo_flb_header_ser.pgcnt", `${pgcnt} is not ${LUO_FLB_PGCNT}`);
  if (count > LUO_FLB_MAX)
    throw new HandoverError("luo_flb_header_ser.count", `${count} exceeds ${LUO_FLB_MAX}`);

  const decoded: IncomingFlb[] = [];
  for (let i = 0; i < count; i++) {
    const ser = LUO_FLB_SER.read(incoming.memory, flbEntryPa(pa, i));
    const flb = ser.name === null ? undefined : registry.find(ser.name);
    if (flb === undefined)
      throw new HandoverError(`luo_flb_ser[${i}].name`, `this kernel knows no ${quote(ser.name)}`);
    if (decoded.some((one) => one.flb === flb))
      throw new HandoverError(`luo_flb_ser[${i}].name`, `${quote(ser.name)} is there twice`);
    const data = flb.decode(incoming, ser.data, `FLB "${flb.compatible}"`);
    decoded.push({ flb, data, count: ser.count });
  }
  return decoded;
}

function decodeSessions(
  incoming: IncomingMemory,
  headPa: number,
  handlers: HandlerRegistry,
  flbs: readonly IncomingFlb[],
  pages: number[],
): DecodedSession[] {
  const blocks = readBlocks(incoming, headPa, LUO_SESSION_SER.sizeBytes, "luo_ser.sessions_pa");
  for (const { pa } of blocks) pages.push(pa);
  const sessions: DecodedSession[] = [];
  const names = new Set<string>();
  for (const pa of blockEntries(blocks, LUO_SESSION_SER.sizeBytes)) {
    const field = `luo_session_ser[${sessions.length}]`;
    const { name, files: filesPa, count } = LUO_SESSION_SER.read(incoming.memory, pa);
    if (name === null || name === "")
      throw new HandoverError(`${field}.name`, "is empty, unterminated or not UTF-8");
    if (names.has(name)) throw new HandoverError(`${field}.name`, `"${name}" is there twice`);
    names.add(name);
    const files = decodeFiles(incoming, filesPa, name, field, handlers, flbs, pages);
    if (files.length !== count)
      throw new HandoverError(`${field}.count`, `${count}, but its blocks hold ${files.length}`);
    sessions.push({ name, files });
  }
  return sessions;
}

function decodeFiles(
  incoming: IncomingMemory,
  headPa: number,
  session: string,
  sessionField: string,
  handlers: HandlerRegistry,
  flbs: readonly IncomingFlb[],
  pages: number[],
): DecodedFile[] {
  const blocks = readBlocks(incoming, headPa, LUO_FILE_SER.sizeBytes, `${sessionField}.files`);
  for (const { pa } of blocks) pages.push(pa);
  const files: DecodedFile[] = [];
  const tokens = new Set<bigint>();
  for (const pa of blockEntries(blocks, LUO_FILE_SER.sizeBytes)) {
    const field = `${sessionField}.luo_file_ser[${files.length}]`;
    const { compatible, data, token } = LUO_FILE_SER.read(incoming.memory, pa);
    const handler = compatible === null ? undefined : handlers.byCompatible(compatible);
    if (handler === undefined)
      throw new HandoverError(`${field}.compatible`, `this kernel knows no ${quote(compatible)}`);
    if (tokens.has(token))
      throw new HandoverError(`${field}.token`, `${hex(token)} is there twice`);
    tokens.add(token);
    for (const flb of handler.flbs)
      if (!flbs.some((one) => one.flb === flb))
        throw new HandoverError(
          `${field}.compatible`,
          `"${handler.compatible}" needs FLB "${flb.compatible}", which was not handed over`,
        );
    const name = `session "${session}" token ${hex(token)}`;
    files.push({ handler, token, data: handler.decode(incoming, data, name) });
  }
  checkLinks(files, session);
  return files;
}

function checkLinks(files: readonly DecodedFile[], session: string): void {
  const byToken = new Map(files.map((file) => [file.token, file]));
  const view = {
    has: (token: bigint) => byToken.has(token),
    dataOf(token: bigint, handler: FileHandler) {
      const file = byToken.get(token);
      return file?.handler === handler ? file.data : null;
    },
  };
  for (const { handler, token, data } of files)
    handler.checkLinks?.(data, view, `session "${session}" token ${hex(token)}`);
}

/** A string from the handover, for a message. */
function quote(text: string | null): string {
  return text === null ? "an unreadable name" : JSON.stringify(text);
}
