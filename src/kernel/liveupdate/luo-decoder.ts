/**
 * Reads and checks all that the previous kernel's orchestrator left, before any of it is used.
 *
 * Why: upstream reads sessions when /dev/liveupdate is first opened, and leaks what it cannot read. A handover
 * that holds running DMA must be known to be whole before the first page is given out. So everything is decoded
 * at boot, including each handler's own data, and refused as a whole by the name of the field that is wrong.
 * Checked: every block preserved and claimed once; counts; names and tokens unique; every handler and FLB known;
 * the FLBs' reference counts equal to the files that need them.
 * Who only looks at a handover (`IncomingMemory.report`) gets what is readable, with null for what is not.
 * Source: Linux 7.3 kernel/liveupdate/luo_core.c luo_early_startup, luo_session.c luo_session_deserialize
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import {
  blockEntries,
  KHO_BLOCK_HEADER_SER,
  type KhoBlock,
  readBlocks,
} from "../../abi/kho-block.ts";
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
import { apart, type IncomingMemory, type Place } from "../kho/incoming.ts";
import { MergedRanges } from "../mm/merged-ranges.ts";
import type { FileDecoder, FileHandler, FileLifecycleBound, FlbDecoder } from "./file-handler.ts";
import { flbEntryPa, type IncomingFlb } from "./flb-registry.ts";
import type { DecodedFile } from "./incoming-session.ts";

export interface DecodedSession<H extends FileDecoder = FileHandler> {
  readonly name: string;
  readonly files: readonly DecodedFile<H>[];
}

/** The previous kernel's state, checked. */
export interface DecodedLiveUpdate<
  H extends FileDecoder = FileHandler,
  F extends FlbDecoder = FileLifecycleBound,
> {
  readonly liveupdateNumber: number;
  readonly sessions: readonly DecodedSession<H>[];
  readonly flbs: readonly IncomingFlb<F>[];
  /** The orchestrator's own pages, order 0, needed no more. */
  readonly pages: readonly number[];
}

/** The handlers that somebody knows. */
export interface KnownHandlers<H extends FileDecoder> {
  byCompatible(compatible: string): H | undefined;
}

/** The FLBs that somebody knows. */
export interface KnownFlbs<F extends FlbDecoder> {
  find(compatible: string): F | undefined;
}

/**
 * Decodes the subtree "LUO".
 *
 * @param blob - where the KHO tree says that it is; untrusted
 * @throws {HandoverError}
 */
export function decodeLiveUpdate<H extends FileDecoder, F extends FlbDecoder>(
  incoming: IncomingMemory,
  blob: { readonly pa: number; readonly sizeBytes: number },
  handlers: KnownHandlers<H>,
  flbs: KnownFlbs<F>,
): DecodedLiveUpdate<H, F> {
  return new Decoder(incoming, handlers, flbs).decode(blob);
}

/** Decodes one handover. */
class Decoder<H extends FileDecoder, F extends FlbDecoder> {
  readonly #incoming: IncomingMemory;
  readonly #handlers: KnownHandlers<H>;
  readonly #registry: KnownFlbs<F>;
  readonly #pages: number[] = [];
  readonly #flbs: IncomingFlb<F>[] = [];
  /** Whether something could not be read: then what counts all of it is not checked. */
  #isIncomplete = false;

  constructor(incoming: IncomingMemory, handlers: KnownHandlers<H>, flbs: KnownFlbs<F>) {
    this.#incoming = incoming;
    this.#handlers = handlers;
    this.#registry = flbs;
  }

  decode(blob: { readonly pa: number; readonly sizeBytes: number }): DecodedLiveUpdate<H, F> {
    const incoming = this.#incoming;
    if (!(blob.sizeBytes >= LUO_SER.sizeBytes))
      throw new HandoverError(
        `subtree "${LUO_KHO_ENTRY_NAME}".blob-size`,
        `${blob.sizeBytes} bytes are less than a luo_ser, ${LUO_SER.sizeBytes}`,
      );
    incoming.claim(blob.pa, 0, `subtree "${LUO_KHO_ENTRY_NAME}".preserved-data`);
    this.#pages.push(blob.pa);
    const luo = LUO_SER.read(incoming.memory, blob.pa);
    if (luo.compatible !== LUO_ABI_COMPATIBLE)
      throw new HandoverError(
        "luo_ser.compatible",
        `${quote(luo.compatible)} is not "${LUO_ABI_COMPATIBLE}"`,
      );
    const place = { pa: blob.pa, struct: LUO_SER };
    apart(incoming, place, () => {
      // One more than it is this kernel's.
      if (!Number.isSafeInteger(luo.liveupdate_num + 1) || luo.liveupdate_num < 1)
        throw new HandoverError("luo_ser.liveupdate_num", `${luo.liveupdate_num} is not a number`);
    });
    this.#part(place, () => this.#decodeFlbs(luo.flbs_pa));
    const sessions = this.#part(place, () => this.#sessions(luo.sessions_pa)) ?? [];
    if (!this.#isIncomplete)
      this.#flbs.forEach((one, i) => {
        const at = { pa: flbEntryPa(luo.flbs_pa, i), struct: LUO_FLB_SER };
        apart(incoming, at, () => this.#checkUsers(one, i, sessions));
        apart(incoming, at, () => one.flb.checkAsked?.(one.data, `FLB "${one.flb.compatible}"`));
      });
    return {
      liveupdateNumber: luo.liveupdate_num,
      sessions,
      flbs: this.#flbs,
      pages: this.#pages,
    };
  }

  /** Decodes a part that others are counted with. */
  #part<T>(place: Place, decode: () => T): T | null {
    const value = apart(this.#incoming, place, decode);
    if (value === null) this.#isIncomplete = true;
    return value;
  }

  #checkUsers(one: IncomingFlb<F>, i: number, sessions: readonly DecodedSession<H>[]): void {
    let needed = 0;
    for (const session of sessions)
      for (const file of session.files) if (file.handler.flbs.includes(one.flb)) needed++;
    if (one.count !== needed)
      throw new HandoverError(
        `luo_flb_ser[${i}].count`,
        `${one.count}, but ${needed} files need "${one.flb.compatible}"`,
      );
  }

  #decodeFlbs(pa: number): boolean {
    if (pa === 0) return true;
    const incoming = this.#incoming;
    incoming.claim(pa, 0, "luo_ser.flbs_pa");
    this.#pages.push(pa);
    const { pgcnt, count } = LUO_FLB_HEADER_SER.read(incoming.memory, pa);
    const place = { pa, struct: LUO_FLB_HEADER_SER };
    this.#part(place, () => {
      if (pgcnt !== LUO_FLB_PGCNT)
        throw new HandoverError("luo_flb_header_ser.pgcnt", `${pgcnt} is not ${LUO_FLB_PGCNT}`);
      return true;
    });
    this.#part(place, () => {
      if (count > LUO_FLB_MAX)
        throw new HandoverError("luo_flb_header_ser.count", `${count} exceeds ${LUO_FLB_MAX}`);
      return true;
    });
    for (let i = 0; i < Math.min(count, LUO_FLB_MAX); i++) {
      const at = { pa: flbEntryPa(pa, i), struct: LUO_FLB_SER };
      const flb = this.#part(at, () => this.#flb(at.pa, i));
      if (flb !== null) this.#flbs.push(flb);
    }
    return true;
  }

  #flb(pa: number, i: number): IncomingFlb<F> {
    const ser = LUO_FLB_SER.read(this.#incoming.memory, pa);
    const flb = ser.name === null ? undefined : this.#registry.find(ser.name);
    if (flb === undefined)
      throw new HandoverError(`luo_flb_ser[${i}].name`, `this kernel knows no ${quote(ser.name)}`);
    if (this.#flbs.some((one) => one.flb === flb))
      throw new HandoverError(`luo_flb_ser[${i}].name`, `${quote(ser.name)} is there twice`);
    const data = flb.decode(this.#incoming, ser.data, `FLB "${flb.compatible}"`);
    return { flb, data, count: ser.count };
  }

  #sessions(headPa: number): DecodedSession<H>[] {
    const size = LUO_SESSION_SER.sizeBytes;
    const blocks = this.#blocks(headPa, size, "luo_ser.sessions_pa");
    const sessions: DecodedSession<H>[] = [];
    const names = new Set<string>();
    let index = 0;
    for (const pa of blockEntries(blocks, size)) {
      const field = `luo_session_ser[${index++}]`;
      const place = { pa, struct: LUO_SESSION_SER };
      const session = this.#part(place, () => this.#session(pa, field, names));
      if (session !== null) sessions.push(session);
    }
    return sessions;
  }

  #session(pa: number, field: string, names: Set<string>): DecodedSession<H> {
    const { name, files: filesPa, count } = LUO_SESSION_SER.read(this.#incoming.memory, pa);
    if (name === null || name === "")
      throw new HandoverError(`${field}.name`, "is empty, unterminated or not UTF-8");
    if (names.has(name)) throw new HandoverError(`${field}.name`, `"${name}" is there twice`);
    names.add(name);
    const blocks = this.#blocks(filesPa, LUO_FILE_SER.sizeBytes, `${field}.files`);
    const files = this.#files(blocks, name, field);
    const held = blocks.reduce((sum, block) => sum + block.count, 0);
    apart(this.#incoming, { pa, struct: LUO_SESSION_SER }, () => {
      if (held !== count)
        throw new HandoverError(`${field}.count`, `${count}, but its blocks hold ${held}`);
    });
    return { name, files };
  }

  #files(blocks: readonly KhoBlock[], session: string, sessionField: string): DecodedFile<H>[] {
    const files: DecodedFile<H>[] = [];
    const tokens = new Set<bigint>();
    const unread = new Set<bigint>();
    const places = new Map<DecodedFile<H>, Place>();
    let index = 0;
    for (const pa of blockEntries(blocks, LUO_FILE_SER.sizeBytes)) {
      const field = `${sessionField}.luo_file_ser[${index++}]`;
      const place = { pa, struct: LUO_FILE_SER };
      const file = this.#part(place, () => this.#file(pa, field, session, tokens, unread));
      if (file === null) continue;
      files.push(file);
      places.set(file, place);
    }
    const byToken = new Map(files.map((file) => [file.token, file]));
    let kept: MergedRanges | null = null;
    const view = {
      keeps(pa: number, lengthBytes: number) {
        kept ??= new MergedRanges(
          files.flatMap(({ handler, data }) => [...(handler.memoryOf?.(data) ?? [])]),
        );
        return kept.contains(pa, lengthBytes) || unread.size > 0;
      },
      has: (token: bigint) => byToken.has(token) || unread.has(token),
      dataOf(token: bigint, handler: FileDecoder) {
        const file = byToken.get(token);
        return file?.handler === handler ? file.data : null;
      },
    };
    for (const file of files) {
      const { handler, token, data } = file;
      const name = `session "${session}" token ${hex(token)}`;
      apart(this.#incoming, places.get(file) as Place, () =>
        handler.checkLinks?.(data, view, name),
      );
    }
    return files;
  }

  #file(
    pa: number,
    field: string,
    session: string,
    tokens: Set<bigint>,
    unread: Set<bigint>,
  ): DecodedFile<H> {
    const incoming = this.#incoming;
    const { compatible, data, token } = LUO_FILE_SER.read(incoming.memory, pa);
    unread.add(token);
    const handler = compatible === null ? undefined : this.#handlers.byCompatible(compatible);
    if (handler === undefined)
      throw new HandoverError(`${field}.compatible`, `this kernel knows no ${quote(compatible)}`);
    if (tokens.has(token))
      throw new HandoverError(`${field}.token`, `${hex(token)} is there twice`);
    tokens.add(token);
    for (const flb of this.#isIncomplete ? [] : handler.flbs)
      if (!this.#flbs.some((one) => one.flb === flb))
        throw new HandoverError(
          `${field}.compatible`,
          `"${handler.compatible}" needs FLB "${flb.compatible}", which was not handed over`,
        );
    const name = `session "${session}" token ${hex(token)}`;
    const file = { handler, token, data: handler.decode(incoming, data, name) };
    unread.delete(token);
    return file;
  }

  #blocks(headPa: number, entrySizeBytes: number, field: string): readonly KhoBlock[] {
    const incoming = this.#incoming;
    const { report } = incoming;
    const onBroken = (error: HandoverError, pa: number) => {
      this.#isIncomplete = true;
      report?.(error, { pa, struct: KHO_BLOCK_HEADER_SER });
    };
    const blocks =
      report === undefined
        ? readBlocks(incoming, headPa, entrySizeBytes, field)
        : readBlocks(incoming, headPa, entrySizeBytes, field, onBroken);
    for (const { pa } of blocks) this.#pages.push(pa);
    return blocks;
  }
}

/** A string from the handover, for a message. */
function quote(text: string | null): string {
  return text === null ? "an unreadable name" : JSON.stringify(text);
}
